//! A task: its rows, head, metric and expectation.

use super::{Layers, Problem, Resolver, layer_set, training::off_or};
use crate::{
    adapter::AdapterConfig,
    data::{Columns, Origin, Source, SplitRule, TextColumns},
    head::{Head, HeadOutput},
    job::{
        HeadKind, HeadRequest, Task, TaskData, place,
        tree::{Table, Value},
    },
    metric::Metric,
    training::Training,
};

impl<'t> Resolver<'t> {
    /// The task of this name; `None` when a name in it is none, which is reported already.
    pub(super) fn task(&mut self, name: &str, table: &'t Table) -> Option<Task> {
        let path = format!("tasks.{name}");
        let layers = Layers { own: Some(table), inherited: None };
        let data = self.task_data(&layers, &path);
        let head = self.head(table, &path);
        let metric: Option<Metric> = layers.get("metric").and_then(Value::word);
        let expect = layers.get("expect").and_then(Value::number);
        if let Some(head) = &head
            && !layers.unsure(&["metric"])
        {
            self.check_metric(head, metric, &path);
            self.check_expectation(expect, metric_of(head, metric), &path);
        }
        let sweep = table.table("sweep").and_then(|own| self.sweep(own, table, &path, data.rows));
        let (adapter, training) = match sweep.as_ref().and_then(|sweep| sweep.trials.first()) {
            Some(first) => (first.adapter.clone(), first.training.clone()),
            None => {
                let adapter = self.adapter(table.table("adapter"), &path);
                let training = self.training(table.table("training"), &path, data.rows);
                (adapter, training)
            }
        };
        let skip_layers = layers.get("skip_layers").and_then(layer_set).unwrap_or_default();
        self.check_skipped(&skip_layers, Some(&adapter), &training, &path);
        let adapter = adapter.without(training.adapter_drop.fixed());
        let publish_as = layers.get("publish_as").and_then(Value::text).unwrap_or(name);
        Some(Task {
            name: Self::name(name)?,
            data,
            origin: origin(table.table("origin")),
            head: head.unwrap_or_else(|| request(HeadKind::Classification)),
            metric,
            expect,
            adapter,
            training,
            sweep,
            skip_layers,
            publish_as: Self::name(publish_as)?,
        })
    }

    fn task_data(&mut self, layers: &Layers<'t>, path: &str) -> TaskData {
        let mut written: Vec<&'t str> = Vec::new();
        let mut source = |key: &str| -> Option<Source> {
            let places = layers.get(key)?.each(Value::text)?;
            written.extend(&places);
            Some(places.into_iter().map(|text| place::resolved(self.folder, text)).collect())
        };
        let (train, validation, test) = (source("train"), source("validation"), source("test"));
        let split = self.split(layers, test.is_some(), path);
        if !layers.has("validation") && !layers.has("split") {
            let message = "no rows choose the best weights: neither `validation` nor `split` is there";
            let help = "add `validation = \"validation.parquet\"`, or `split = { validation = 0.1, test = 0.1 }`";
            self.refuse(path, Problem::new("no-validation", message, help));
        }
        let columns = self.columns(layers, path);
        let mut rows = None;
        layers.take("rows", off_or(Value::whole), &mut rows);
        let credentials = layers.get("credentials").and_then(Value::text).map(str::to_owned);
        self.pointless_credentials(credentials.is_some(), &written, &format!("{path}.credentials"));
        TaskData { train: train.unwrap_or_default(), validation, test, split, columns, rows, credentials }
    }

    fn split(&mut self, layers: &Layers<'t>, test_files: bool, path: &str) -> Option<SplitRule> {
        let table = layers.get("split")?.table()?;
        let number = |key: &str| table.get(key).and_then(|item| item.value.number());
        let test = number("test");
        let rule = SplitRule {
            validation: number("validation").unwrap_or(0.1),
            test: test.unwrap_or(if test_files { 0.0 } else { 0.1 }),
            group_by: table.text("group_by"),
            seed: table.get("seed").and_then(|item| item.value.whole()).unwrap_or(1),
        };
        if test_files && rule.test > 0.0 {
            let message = "held-out rows come from `test` and from `split`";
            let help = "remove `test` here, or from the task; `split` may make the validation rows alone";
            self.refuse(&format!("{path}.split.test"), Problem::new("conflict", message, help));
        }
        if rule.validation + rule.test >= 1.0 {
            let message =
                format!("`split` leaves no training rows: {} and {} are held back", rule.validation, rule.test);
            let help = "let `validation` and `test` together stay below 1";
            self.refuse(&format!("{path}.split"), Problem::new("out-of-range", message, help));
        }
        Some(rule)
    }

    fn columns(&mut self, layers: &Layers<'t>, path: &str) -> Columns {
        let names = layers.get("text").and_then(|value| value.each(Value::text)).unwrap_or_else(|| vec!["text"]);
        let text = match names.as_slice() {
            [first, second] => {
                if first == second {
                    let message = format!("both texts of the pair are the column {first:?}");
                    let problem = Problem::new("repeated-column", message, "name two columns, or one text alone");
                    self.refuse(&format!("{path}.text"), problem);
                }
                TextColumns::Pair((*first).to_owned(), (*second).to_owned())
            }
            names => TextColumns::One(names.first().copied().unwrap_or("text").to_owned()),
        };
        let label = layers.get("label").and_then(Value::text).unwrap_or("label");
        if names.contains(&label) && !layers.unsure(&["text", "label"]) {
            let message = format!("the column {label:?} is read as text and as label");
            let problem = Problem::new("repeated-column", message, "name another column as `text` or as `label`");
            self.refuse(&format!("{path}.label"), problem);
        }
        Columns { text, label: label.to_owned() }
    }

    /// The head; `None` when its kind was refused, so that nothing can be checked against it.
    fn head(&mut self, table: &'t Table, path: &str) -> Option<HeadRequest> {
        let written = table.get("head").map(|item| &item.value);
        let default = self.default_table("head");
        let path = format!("{path}.head");
        let layers = self.layers(written.and_then(Value::table), default, &path);
        let kind = match written {
            Some(Value::Refused) => return None,
            Some(kind @ Value::Text(_)) => Some(kind),
            _ => layers.get("kind"),
        };
        let mut head = request(match kind {
            Some(value) => value.word()?,
            None => HeadKind::Classification,
        });
        layers.take("layers", Value::whole, &mut head.layers);
        layers.take("activation", Value::word, &mut head.activation);
        layers.take("use_pooler", Value::flag, &mut head.use_pooler);
        let labels = layers.own("labels").and_then(|value| value.each(Value::text));
        if let Some(labels) = labels {
            let path = format!("{path}.labels");
            if head.kind == HeadKind::Regression {
                let message = "a regression head has no `labels`";
                let help = "remove them, or set `kind = \"classification\"`";
                self.refuse(&path, Problem::new("conflict", message, help));
            }
            for (index, label) in labels.iter().enumerate() {
                if labels[..index].contains(label) {
                    let message = format!("the label {label:?} stands twice");
                    let problem = Problem::new("repeated-label", message, "name each class once");
                    self.refuse(&format!("{path}.{index}"), problem);
                }
            }
            head.labels = Some(labels.into_iter().map(str::to_owned).collect());
        }
        if head.layers == 1 && layers.own("activation").is_some() {
            let message = "`activation` is without effect: a head of one layer has none";
            self.warn(&format!("{path}.activation"), Problem::new("no-effect", message, "remove it"));
        }
        Some(head)
    }

    fn check_metric(&mut self, head: &HeadRequest, metric: Option<Metric>, path: &str) {
        let Some(metric) = metric else { return };
        // Without labels the number of classes is only known from the data: as many as the metric wants.
        let output = output(head, 2);
        if metric.fits(&output) {
            return;
        }
        let fitting: Vec<&str> =
            Metric::ALL.into_iter().filter(|metric| metric.fits(&output)).map(Metric::name).collect();
        let message = match head.kind {
            HeadKind::Classification if metric == Metric::F1 => {
                let classes = head.labels.as_ref().map_or(0, Vec::len);
                format!("`f1` scores class 1 of two classes, and this head has {classes}")
            }
            HeadKind::Classification => format!("`{metric}` cannot score a classification head"),
            HeadKind::Regression => format!("`{metric}` cannot score a regression head"),
        };
        let help = format!("metrics of this head: {}", fitting.join(", "));
        self.refuse(&format!("{path}.metric"), Problem::new("metric-does-not-fit", message, help));
    }

    /// An expectation must be a value that the metric can reach.
    pub(super) fn check_expectation(&mut self, expect: Option<f64>, metric: Metric, path: &str) {
        let Some(expect) = expect else { return };
        let least = match metric {
            Metric::Matthews | Metric::Pearson | Metric::Spearman => -1.0,
            Metric::Accuracy | Metric::F1 | Metric::F1Macro | Metric::F1Micro => 0.0,
        };
        if !(least..=1.0).contains(&expect) {
            let message = format!("`expect` is {expect}, and {metric} lies from {least} to 1");
            let problem = Problem::new("out-of-range", message, "write the score as a share, such as `expect = 0.85`");
            self.refuse(&format!("{path}.expect"), problem);
        }
    }

    /// Layers that are skipped although they have no adapter anyway.
    pub(super) fn check_skipped(
        &mut self,
        skip_layers: &[u32],
        adapter: Option<&AdapterConfig>,
        training: &Training,
        path: &str,
    ) {
        let bare = adapter.map_or(&[][..], AdapterConfig::leave_out);
        let dropped = training.adapter_drop.fixed();
        if let Some(layer) = skip_layers.iter().find(|layer| bare.contains(layer) || dropped.contains(layer)) {
            let why = if bare.contains(layer) { "leave_out" } else { "adapter_drop" };
            let message = format!("skipping layer {layer} is without effect: `{why}` leaves it without an adapter");
            let problem = Problem::new("no-effect", message, format!("remove {layer} from `skip_layers`"));
            self.warn(&format!("{path}.skip_layers"), problem);
        }
    }
}

/// What the job says of where the rows come from.
fn origin(table: Option<&Table>) -> Origin {
    let text = |key: &str| table.and_then(|table| table.text(key));
    Origin { source: text("source"), license: text("license") }
}

/// AdapterHub's default head of this kind.
fn request(kind: HeadKind) -> HeadRequest {
    let head = Head::new(HeadOutput::Regression);
    let Head { layers, activation, use_pooler, .. } = head;
    HeadRequest { kind, labels: None, layers, activation, use_pooler }
}

/// The output of a head, with a stand-in for labels that only the data knows.
fn output(head: &HeadRequest, classes: usize) -> HeadOutput {
    match head.kind {
        HeadKind::Regression => HeadOutput::Regression,
        HeadKind::Classification => {
            HeadOutput::Classification { labels: head.labels.clone().unwrap_or_else(|| vec![String::new(); classes]) }
        }
    }
}

/// The metric of a task: its own, or its head's default.
pub(super) fn metric_of(head: &HeadRequest, metric: Option<Metric>) -> Metric {
    metric.unwrap_or_else(|| Metric::default_for(&output(head, 2)))
}
