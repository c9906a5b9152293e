//! A fusion: which adapters it reads, whose rows it uses, its layer.

use std::ops::Range;

use super::{Layers, Problem, Resolver, layer_set, task::metric_of, training::off_or};
use crate::{
    adapter::FusionConfig,
    job::{
        AdapterRef, Fusion, HeadKind, HeadRequest, place,
        suggest::nearest,
        tree::{Table, Value},
    },
    metric::Metric,
};

type Tables<'t> = [(&'t str, &'t Table)];

impl<'t> Resolver<'t> {
    /// The fusion of this name; `None` when a name in it is none, which is reported already.
    pub(super) fn fusion(
        &mut self,
        name: &str,
        table: &'t Table,
        tasks: &Tables<'t>,
        fusions: &Tables<'t>,
    ) -> Option<Fusion> {
        let path = format!("fusions.{name}");
        let adapters = self.fused(table, &path, tasks, fusions);
        let task = self.fusion_task(table, &path, tasks, fusions);
        let layers = Layers { own: Some(table), inherited: None };
        let expect = layers.get("expect").and_then(Value::number);
        let of_task = tasks.iter().find(|(name, _)| Some(*name) == task).map(|(_, table)| *table);
        if let Some(metric) = of_task.and_then(|table| self.metric_of_table(table)) {
            self.check_expectation(expect, metric, &path);
        }
        let rows = of_task.and_then(|table| table.get("rows")).and_then(|item| item.value.whole());
        let training = self.training(table.table("training"), &path, rows);
        let skip_layers = layers.get("skip_layers").and_then(layer_set).unwrap_or_default();
        self.check_skipped(&skip_layers, None, &training, &path);
        let config = self.fusion_config(table.table("fusion"), &path);
        let publish_as = layers.get("publish_as").and_then(Value::text).unwrap_or(name);
        let credentials = layers.get("credentials").and_then(Value::text).map(str::to_owned);
        let from_hub = adapters.iter().any(|adapter| matches!(adapter, AdapterRef::Hub(_)));
        if credentials.is_some() && !from_hub && !layers.unsure(&["adapters"]) {
            let message = "`credentials` is without effect: no adapter here comes from a hub";
            self.warn(&format!("{path}.credentials"), Problem::new("no-effect", message, "remove it"));
        }
        Some(Fusion {
            name: Self::name(name)?,
            adapters,
            task: Self::name(task?)?,
            credentials,
            config,
            training,
            expect,
            skip_layers,
            publish_as: Self::name(publish_as)?,
        })
    }

    fn fused(&mut self, table: &Table, path: &str, tasks: &Tables<'t>, fusions: &Tables<'t>) -> Vec<AdapterRef> {
        let Some(item) = table.get("adapters") else { return Vec::new() };
        let mut found: Vec<AdapterRef> = Vec::new();
        for (index, (value, span)) in item.value.elements().iter().enumerate() {
            let Some(text) = value.text() else { continue };
            let adapter = if place::scheme(text).is_some() {
                self.pinned(text, &format!("{path}.adapters.{index}"));
                AdapterRef::Hub(text.to_owned())
            } else if text.contains('/') {
                AdapterRef::Folder(place::resolved(self.folder, text))
            } else {
                self.check_adapter_name(text, span.clone(), tasks, fusions);
                let Some(name) = Self::name(text) else { continue };
                AdapterRef::Task(name)
            };
            if found.contains(&adapter) {
                let message = format!("{text:?} stands twice among the adapters");
                let help = "name each adapter once: fusion pays attention to it by its weights, not by its count";
                self.at(span.clone(), Problem::new("repeated-adapter", message, help));
            } else {
                found.push(adapter);
            }
        }
        found
    }

    fn check_adapter_name(&mut self, name: &str, span: Range<usize>, tasks: &Tables<'t>, fusions: &Tables<'t>) {
        if tasks.iter().any(|(task, _)| *task == name) {
            return;
        }
        let problem = if fusions.iter().any(|(fusion, _)| *fusion == name) {
            let help = format!("name the adapters that {name:?} reads instead");
            let message = format!("{name:?} is a fusion: fusions read adapters only, neither themselves nor others");
            Problem::new("fusion-of-fusion", message, help)
        } else {
            let help = format!("{}; a folder needs a `/`, such as \"./{name}\"", known_tasks(name, tasks));
            Problem::new("unknown-adapter", format!("no task of this job is named {name:?}"), help)
        };
        self.at(span, problem);
    }

    /// The name of the task whose rows the fusion uses, if it is one.
    fn fusion_task(
        &mut self,
        table: &'t Table,
        path: &str,
        tasks: &Tables<'t>,
        fusions: &Tables<'t>,
    ) -> Option<&'t str> {
        let name = table.get("task")?.value.text()?;
        if !tasks.iter().any(|(task, _)| *task == name) {
            let message = if fusions.iter().any(|(fusion, _)| *fusion == name) {
                format!("{name:?} is a fusion, and a fusion uses the rows of a task")
            } else {
                format!("no task of this job is named {name:?}")
            };
            let problem = Problem::new("unknown-task", message, known_tasks(name, tasks));
            self.refuse(&format!("{path}.task"), problem);
        }
        Some(name)
    }

    fn fusion_config(&mut self, own: Option<&'t Table>, path: &str) -> FusionConfig {
        let default = self.default_table("fusion");
        let path = format!("{path}.fusion");
        let layers = self.layers(own, default, &path);
        let mut config = FusionConfig::default();
        for (name, flag) in [
            ("key", &mut config.key),
            ("query", &mut config.query),
            ("value", &mut config.value),
            ("query_before_ln", &mut config.query_before_ln),
            ("regularization", &mut config.regularization),
            ("residual_before", &mut config.residual_before),
            ("value_before_softmax", &mut config.value_before_softmax),
            ("value_initialized", &mut config.value_initialized),
        ] {
            layers.take(name, Value::flag, flag);
        }
        layers.take("dropout_prob", off_or(Value::number), &mut config.dropout_prob);
        if !config.value {
            for name in ["regularization", "value_before_softmax", "value_initialized"] {
                if layers.has(name) {
                    let message = format!("`{name}` is without effect: `value` is false, so there is no value matrix");
                    self.warn(&format!("{path}.{name}"), Problem::new("no-effect", message, "remove it"));
                }
            }
        }
        config
    }

    /// The metric of a task's table, where its head and metric are known.
    fn metric_of_table(&self, table: &Table) -> Option<Metric> {
        if let Some(item) = table.get("metric") {
            return item.value.word();
        }
        let head = table.get("head").map(|item| &item.value);
        let kind: HeadKind = match head {
            Some(kind @ Value::Text(_)) => kind.word()?,
            Some(Value::Refused) => return None,
            other => {
                let kind = |table: &Table| table.get("kind").map(|item| item.value.word());
                let own = other.and_then(Value::table).and_then(kind);
                own.or_else(|| self.default_table("head").and_then(kind)).unwrap_or(Some(HeadKind::Classification))?
            }
        };
        let head = HeadRequest {
            kind,
            labels: None,
            layers: 1,
            activation: crate::head::HeadActivation::Tanh,
            use_pooler: false,
        };
        Some(metric_of(&head, None))
    }
}

fn known_tasks(name: &str, tasks: &Tables<'_>) -> String {
    let names = || tasks.iter().map(|(task, _)| *task);
    let list = names().collect::<Vec<_>>().join(", ");
    match nearest(name, names()) {
        _ if tasks.is_empty() => "the job has no tasks".to_owned(),
        Some(near) => format!("did you mean {near:?}? Tasks: {list}"),
        None => format!("tasks: {list}"),
    }
}
