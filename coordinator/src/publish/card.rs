//! README.md of a release: AdapterHub's card, with what was measured.

use std::fmt::Write as _;

use graftwork_model::{TrunkDescription, portable_order};
use graftwork_scheduler::{FusedSource, PlannedStage};
use graftwork_shared::{
    data::Split,
    head::HeadOutput,
    recipe::Method,
    record::Record,
    sweep::values_line,
    training::{AdapterDrop, Length, Precision, Reduction, Schedule, Warmup},
    upload,
    view::StageKind,
};

/// What a card tells of.
pub(super) struct Card<'a> {
    pub(super) record: &'a Record,
    pub(super) stage: &'a PlannedStage,
    pub(super) trunk: &'a TrunkDescription,
    pub(super) base_name: &'a str,
}

/// The whole card.
pub(super) fn card(card: &Card<'_>) -> String {
    let mut text = String::new();
    card.front_matter(&mut text);
    card.introduction(&mut text);
    card.usage(&mut text);
    card.training(&mut text);
    card.results(&mut text);
    card.sweep(&mut text);
    card.data(&mut text);
    text
}

impl Card<'_> {
    fn id(&self) -> String {
        format!("{}/{}", self.record.job.publish.organisation, self.stage.publish_as)
    }

    /// Where a reader finds the base model: its address, or for a folder, uploaded or not, a path that the reader fills in.
    /// Where it lay when it was used is nobody's business.
    fn base_location(&self) -> String {
        let location = &self.record.job.base_model.location;
        let local = !location.contains("://") || location.starts_with("file://") || upload::digest(location).is_some();
        if local { format!("path/to/{}", self.base_name) } else { location.clone() }
    }

    fn is_fusion(&self) -> bool {
        self.stage.kind == StageKind::Fusion
    }

    /// Whether AdapterHub's Python library can use it.
    fn is_for_python(&self) -> bool {
        let Method::Fusion { adapters, .. } = &self.record.recipe.method else { return true };
        let configs: Vec<_> = adapters.iter().map(|adapter| &adapter.config).collect();
        portable_order(&configs, self.trunk.layers).is_some()
    }

    fn front_matter(&self, text: &mut String) {
        let mut tags = vec!["adapter-transformers", self.trunk.model_type, "graftwork"];
        tags.push(match self.record.recipe.head.output {
            HeadOutput::Classification { .. } => "text-classification",
            HeadOutput::Regression => "text-regression",
        });
        if self.is_fusion() {
            tags.push("adapterfusion");
        }
        tags.sort_unstable();
        text.push_str("---\n");
        if self.record.job.base_model.location.starts_with("hf://") {
            line(text, &format!("base_model: {}", self.base_name));
        }
        line(text, "library_name: adapters");
        if let Some(license) = &self.record.job.publish.license {
            line(text, &format!("license: {}", quoted(license)));
        }
        line(text, "metrics:");
        line(text, &format!("- {}", self.record.recipe.metric));
        line(text, "pipeline_tag: text-classification");
        line(text, "tags:");
        for tag in tags {
            line(text, &format!("- {tag}"));
        }
        text.push_str("---\n\n");
    }

    fn introduction(&self, text: &mut String) {
        let what = if self.is_fusion() { "Adapter fusion" } else { "Adapter" };
        line(text, &format!("# {what} `{}` for `{}`\n", self.id(), self.base_name));
        let task = self.stage.task.as_ref().unwrap_or(&self.stage.name);
        let head = match &self.record.recipe.head.output {
            HeadOutput::Classification { labels } => format!("a classification head with {} classes", labels.len()),
            HeadOutput::Regression => "a regression head".to_owned(),
        };
        let made = if self.is_fusion() {
            let names = self.record.composition.adapters();
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("An [AdapterFusion](https://aclanthology.org/2021.eacl-main.39/) layer over {}", names.join(", "))
        } else {
            "An [adapter](https://adapterhub.ml)".to_owned()
        };
        let sentence = format!("{made} for `{}`, trained on the task `{task}`, with {head}.", self.base_name);
        line(text, &format!("{sentence} The base model itself was not changed.\n"));
    }

    fn usage(&self, text: &mut String) {
        line(text, "## Usage\n");
        if self.is_for_python() {
            let load = if self.is_fusion() { "load_adapter_setup" } else { "load_adapter" };
            line(text, "In Python, with the [Adapters](https://github.com/adapter-hub/adapters) library:\n");
            line(text, "```python\nfrom adapters import AutoAdapterModel\n");
            line(text, &format!("model = AutoAdapterModel.from_pretrained(\"{}\")", self.base_name));
            line(text, &format!("model.{load}(\"path/to/{}\", set_active=True)\n```\n", self.id()));
        } else {
            line(
                text,
                "The Python library [Adapters](https://github.com/adapter-hub/adapters) loads this release and then",
            );
            line(text, "fails: there one of the adapters must stand in every layer in which another one does.\n");
        }
        line(text, "On the command line, with Graftwork:\n");
        let option = if self.is_fusion() { "--setup" } else { "--adapter" };
        line(text, "```sh");
        line(text, &format!("graftwork predict --base-model {} \\", self.base_location()));
        line(text, &format!("  {option} path/to/{} --text \"…\"\n```\n", self.id()));
        if let HeadOutput::Classification { labels } = &self.record.recipe.head.output {
            let listed: Vec<String> = labels.iter().enumerate().map(|(id, label)| format!("{id} = {label}")).collect();
            line(text, &format!("Classes: {}.\n", listed.join(", ")));
        }
    }

    fn training(&self, text: &mut String) {
        let training = &self.record.recipe.training;
        line(text, "## Architecture and training\n\n| option | value |\n|---|---|");
        let mut row = |name: &str, value: String| line(text, &format!("| {name} | {} |", cell(&value)));
        row("method", self.stage.method.clone());
        row("trained parameters", self.record.trained_parameters.to_string());
        row(
            "length",
            match training.length {
                Length::Epochs(1) => "1 epoch".to_owned(),
                Length::Epochs(epochs) => format!("{epochs} epochs"),
                Length::Steps(steps) => format!("{steps} steps"),
            },
        );
        row("steps done, step kept", format!("{}, {}", self.record.steps[0], self.record.steps[1]));
        let rows = u64::from(training.batch_size) * u64::from(training.accumulation);
        let added =
            if training.reduction == Reduction::Fast { ", added by the transport's own all-reduce" } else { "" };
        row("rows of an update", format!("{rows} in {} lanes{added}", training.lanes));
        row("learning rate", training.learning_rate.to_string());
        row(
            "schedule",
            match training.schedule {
                Schedule::Linear => "linear".to_owned(),
                Schedule::Cosine => "cosine".to_owned(),
                Schedule::Constant => "constant".to_owned(),
            },
        );
        row(
            "warm-up",
            match training.warmup {
                Warmup::Steps(steps) => format!("{steps} steps"),
                Warmup::Fraction(share) => format!("{share} of all steps"),
            },
        );
        row("weight decay", training.weight_decay.to_string());
        row("gradient norm cut to", training.clip_norm.map_or("not cut".to_owned(), |norm| norm.to_string()));
        row("tokens of a row at most", training.max_length.to_string());
        if let Some(stopping) = &training.early_stopping {
            let (patience, least) = (stopping.patience, stopping.min_delta);
            row("early stopping", format!("after {patience} evaluations without growth of more than {least}"));
        }
        match &training.adapter_drop {
            AdapterDrop::DrawnUpTo(most) => row("AdapterDrop", format!("each step left out 0 to {most} of the lowest")),
            AdapterDrop::Layers(layers) => row("AdapterDrop", format!("layers {layers:?} have no adapter")),
            AdapterDrop::Off => {}
        }
        if !self.record.recipe.skip_layers.is_empty() {
            row("layers left out at inference", format!("{:?}", self.record.recipe.skip_layers));
        }
        row("base model's dropout", if training.base_model_dropout { "on" } else { "off" }.to_owned());
        if training.precision != Precision::Fp32 {
            row("base model's products", format!("in {}", training.precision));
        }
        row("seed", training.seed.to_string());
        row("numeric class", self.record.numeric_class.to_string());
        line(text, "");
    }

    fn results(&self, text: &mut String) {
        line(text, "## Results\n");
        let metrics: std::collections::BTreeSet<_> =
            self.record.scores.values().flat_map(|evaluation| evaluation.metrics.keys().copied()).collect();
        let mut head = String::from("| rows | loss |");
        let mut rule = String::from("|---|---|");
        for metric in &metrics {
            let _ = write!(head, " {metric} |");
            rule.push_str("---|");
        }
        line(text, &head);
        line(text, &rule);
        for (split, evaluation) in &self.record.scores {
            let rows = self.record.data.get(split).map_or(0, |manifest| manifest.rows);
            let mut row = format!("| {split} ({rows}) | {:.4} |", evaluation.loss);
            for metric in &metrics {
                let score = evaluation.metrics.get(metric).map_or("–".to_owned(), |score| format!("{score:.4}"));
                let _ = write!(row, " {score} |");
            }
            line(text, &row);
        }
        let chosen = if self.record.recipe.training.keep_best {
            format!("The weights were chosen by {} on validation rows.", self.record.recipe.metric)
        } else {
            "The weights are those of the last step.".to_owned()
        };
        line(text, &format!("\n{chosen} Each prediction is kept in `predictions/`.\n"));
    }

    /// The other trials, and where each of them stopped.
    fn sweep(&self, text: &mut String) {
        let Some(sweep) = &self.record.sweep else { return };
        line(text, "## Sweep\n");
        let of = if sweep.combinations > sweep.trials.len() as u64 {
            format!(" of {} combinations", sweep.combinations)
        } else {
            String::new()
        };
        let metric = self.record.recipe.metric;
        line(
            text,
            &format!(
                "Trial {} of {} trials{of}, the best by {metric} on validation rows.",
                sweep.trial,
                sweep.trials.len()
            ),
        );
        if sweep.asynchronous {
            line(text, "Trials were halved asynchronously, so which of them went on depended on timing.");
        }
        let rungs: Vec<String> = sweep.rungs.iter().map(|step| format!(" at step {step} |")).collect();
        line(text, &format!("\n| trial | values |{}", rungs.concat()));
        line(text, &format!("|---|---|{}", "---|".repeat(rungs.len())));
        for (trial, number) in sweep.trials.iter().zip(1..) {
            let scores = (0..).take(rungs.len()).map(|rung| {
                let score = trial.scores.iter().find(|score| score.rung == rung);
                score.map_or_else(|| " – |".to_owned(), |score| format!(" {score} |"))
            });
            let failed = trial.failed.as_ref().map(|reason| format!(" (failed: {reason})")).unwrap_or_default();
            let values = cell(&(values_line(&trial.values) + &failed));
            line(text, &format!("| {number} | {values} |{}", scores.collect::<String>()));
        }
        line(text, "");
    }

    fn data(&self, text: &mut String) {
        line(text, "## Data and licence\n\n| rows | number | digest |\n|---|---|---|");
        for split in [Split::Train, Split::Validation, Split::Test] {
            let Some(manifest) = self.record.data.get(&split) else { continue };
            let digest = self.record.data_digests.get(&split).map_or("–".to_owned(), |digest| format!("`{digest}`"));
            line(text, &format!("| {split} | {} | {digest} |", manifest.rows));
        }
        line(
            text,
            "\nThe digest is SHA-256 over the sums, one for each row group, of the SHA-256 of each row (its number,",
        );
        line(text, "texts and label), so it does not depend on the order in which rows were read.");
        self.origins(text);
        let license = self.record.job.publish.license.as_deref();
        let license = license.map_or("no licence was stated".to_owned(), |license| format!("`{license}`"));
        line(
            text,
            &format!(
                "\nLicence of this release: {license}. It says nothing of the rows, whose licence is their own.\n"
            ),
        );
        line(text, "`graftwork.json` binds these files to everything that decided them;");
        line(
            text,
            "`graftwork verify --retrain RELEASE` trains them again from it and compares, where base model and rows lie",
        );
        line(text, "at the places that it names.");
    }

    /// Where the rows of the task come from, and of the tasks whose adapters a fusion reads.
    fn origins(&self, text: &mut String) {
        line(text, "\nWhere rows come from, and their licence, as the job says it:\n");
        line(text, "| task | source | licence |\n|---|---|---|");
        for task in &self.record.job.tasks {
            let said = |words: Option<&str>| words.map_or("not stated".to_owned(), cell);
            let (source, license) = (said(task.origin.source.as_deref()), said(task.origin.license.as_deref()));
            line(text, &format!("| `{}` | {source} | {license} |", task.name));
        }
        let outside = self.stage.fused.iter().filter(|source| matches!(source, FusedSource::External { .. })).count();
        if outside > 0 {
            let of = if outside == 1 { "One adapter comes" } else { "Other adapters come" };
            line(text, &format!("\n{of} from outside the job: its own card says on which rows it was trained."));
        }
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A text inside a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// A YAML scalar: plain where it is plain, quoted otherwise.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._+".contains(&b));
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
