//! Training options, and which of them contradict each other or come to nothing.

use super::{Layers, Problem, Resolver, layer_set};
use crate::{
    job::{
        Device,
        tree::{Table, Value},
    },
    training::{AdapterDrop, EarlyStopping, Interval, Length, Precision, Training, Warmup},
};

impl<'t> Resolver<'t> {
    /// The training of a task or fusion at `path`, over at most `rows` rows when the job limits them.
    pub(super) fn training(&mut self, own: Option<&'t Table>, path: &str, rows: Option<u64>) -> Training {
        let default = self.default_table("training");
        let path = format!("{path}.training");
        let layers = self.layers(own, default, &path);
        let mut training = Training::default();
        take_loop(&layers, &mut training);
        take_optimizer(&layers, &mut training);
        self.take_lanes(&layers, &mut training, &path);
        layers.take("adapter_drop", adapter_drop, &mut training.adapter_drop);
        if let Some(Value::Table(table)) = layers.get("adapter_drop")
            && !table.has("layers")
            && !table.has("up_to")
        {
            let help = "write `adapter_drop = { layers = [0, 1] }`, `{ up_to = 3 }` or \"off\"";
            let path = format!("{path}.adapter_drop");
            self.refuse(&path, Problem::new("missing-key", "`adapter_drop` needs `layers` or `up_to`", help));
        }
        self.check_precision(&training, &path);
        if !layers.unsure(&["epochs", "steps", "warmup_steps", "batch_size", "accumulation"]) {
            self.check_warmup(&training, &path, rows);
        }
        if !layers.unsure(&["epochs", "steps", "evaluate_every", "early_stopping"]) {
            self.check_evaluations(&training, &path);
        }
        training
    }

    fn take_lanes(&mut self, layers: &Layers<'t>, training: &mut Training, path: &str) {
        let unsure = layers.unsure(&["lanes", "batch_size"]);
        match layers.get("lanes").and_then(Value::whole) {
            None => training.lanes = training.lanes.min(training.batch_size),
            Some(lanes) => {
                training.lanes = lanes;
                if lanes > training.batch_size && !unsure {
                    let message = format!("{lanes} lanes cannot share a batch of {} rows", training.batch_size);
                    let help = format!("set `lanes` to at most {}, or `batch_size` to more", training.batch_size);
                    self.refuse(&format!("{path}.lanes"), Problem::new("lanes-above-batch", message, help));
                }
            }
        }
    }

    /// The processor has fast products for fp32 alone, and its other ones depend on instructions that no numeric class
    /// tells.
    fn check_precision(&mut self, training: &Training, path: &str) {
        if training.precision != Precision::Fp32 && self.device == Device::Cpu {
            let message = format!("the processor computes in fp32 alone, not in {}", training.precision);
            let help = "remove `precision`, or train on a GPU by `device = \"cuda\"` in [resources]";
            self.refuse(&format!("{path}.precision"), Problem::new("precision-needs-gpu", message, help));
        }
    }

    fn check_warmup(&mut self, training: &Training, path: &str, rows: Option<u64>) {
        let Warmup::Steps(warmup) = training.warmup else { return };
        let total = match (training.length, rows) {
            (Length::Steps(steps), _) => steps,
            (Length::Epochs(_), Some(rows)) => training.total_steps(rows),
            (Length::Epochs(_), None) => return,
        };
        if warmup >= total {
            let message = format!("warm-up of {warmup} updates leaves nothing of a training of {total}");
            let help = format!("set `warmup_steps` below {total}, or write `warmup` as a share");
            self.refuse(&format!("{path}.warmup_steps"), Problem::new("warmup-too-long", message, help));
        }
    }

    fn check_evaluations(&mut self, training: &Training, path: &str) {
        let evaluations = match (training.length, training.evaluate_every) {
            (Length::Epochs(epochs), Interval::Epoch) => u64::from(epochs),
            (Length::Steps(steps), Interval::Steps(every)) => {
                if every > steps {
                    let message = format!(
                        "`evaluate_every` is without effect: the training ends after {steps} updates, before the \
                         first {every}"
                    );
                    let help = "validation is scored at the end in any case";
                    self.warn(&format!("{path}.evaluate_every"), Problem::new("no-effect", message, help));
                }
                steps.div_ceil(every)
            }
            _ => return,
        };
        if let Some(stopping) = &training.early_stopping
            && u64::from(stopping.patience) + 1 >= evaluations
        {
            let message = format!(
                "`early_stopping` is without effect: with {evaluations} evaluations, patience {} never stops before the \
                 end",
                stopping.patience
            );
            let help = "lower `patience`, train longer, or set `evaluate_every` to fewer updates";
            self.warn(&format!("{path}.early_stopping"), Problem::new("no-effect", message, help));
        }
    }
}

fn take_loop(layers: &Layers<'_>, training: &mut Training) {
    match layers.one_of("epochs", "steps") {
        Some(("epochs", value)) => {
            training.length = value.whole().map_or(training.length, Length::Epochs);
        }
        Some((_, value)) => training.length = value.whole().map_or(training.length, Length::Steps),
        None => {}
    }
    layers.take("batch_size", Value::whole, &mut training.batch_size);
    layers.take("accumulation", Value::whole, &mut training.accumulation);
    layers.take("max_length", Value::whole, &mut training.max_length);
    layers.take("seed", Value::whole, &mut training.seed);
    layers.take("precision", Value::word, &mut training.precision);
    layers.take("base_model_dropout", Value::flag, &mut training.base_model_dropout);
    layers.take("evaluate_every", interval, &mut training.evaluate_every);
    layers.take("checkpoint_every", Value::whole, &mut training.checkpoint_every_steps);
    layers.take("early_stopping", early_stopping, &mut training.early_stopping);
    layers.take("keep_best", Value::flag, &mut training.keep_best);
}

fn take_optimizer(layers: &Layers<'_>, training: &mut Training) {
    layers.take("learning_rate", Value::number, &mut training.learning_rate);
    layers.take("schedule", Value::word, &mut training.schedule);
    match layers.one_of("warmup", "warmup_steps") {
        Some(("warmup", value)) => training.warmup = value.number().map_or(training.warmup, Warmup::Fraction),
        Some((_, value)) => training.warmup = value.whole().map_or(training.warmup, Warmup::Steps),
        None => {}
    }
    layers.take("weight_decay", Value::number, &mut training.weight_decay);
    layers.take("betas", |value| value.each(Value::number)?.try_into().ok(), &mut training.betas);
    layers.take("epsilon", Value::number, &mut training.epsilon);
    layers.take("reduction", Value::word, &mut training.reduction);
    layers.take("clip_norm", off_or(Value::number), &mut training.clip_norm);
}

/// Reads a number, or a word that stands for none.
pub(super) fn off_or<T>(read: impl Fn(&Value) -> Option<T>) -> impl Fn(&Value) -> Option<Option<T>> {
    move |value| match value {
        Value::Text(_) => Some(None),
        value => read(value).map(Some),
    }
}

fn interval(value: &Value) -> Option<Interval> {
    match value {
        Value::Text(_) => Some(Interval::Epoch),
        value => value.whole().map(Interval::Steps),
    }
}

#[expect(clippy::option_option, reason = "the outer option says whether the key was written, the inner is its value")]
fn early_stopping(value: &Value) -> Option<Option<EarlyStopping>> {
    match value {
        Value::Text(_) => Some(None),
        Value::Table(table) => {
            let patience = table.get("patience")?.value.whole()?;
            let min_delta = table.get("min_delta").and_then(|item| item.value.number()).unwrap_or(0.0);
            Some(Some(EarlyStopping { patience, min_delta }))
        }
        _ => None,
    }
}

fn adapter_drop(value: &Value) -> Option<AdapterDrop> {
    match value {
        Value::Text(_) => Some(AdapterDrop::Off),
        Value::Table(table) => match table.get("layers") {
            Some(item) => layer_set(&item.value).map(AdapterDrop::Layers),
            None => table.get("up_to")?.value.whole().map(AdapterDrop::DrawnUpTo),
        },
        _ => None,
    }
}
