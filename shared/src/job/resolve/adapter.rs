//! The adapter of a task: the preset of its method, with its own and inherited options over it.

use super::{Problem, Resolver, layer_set, layers::Layers};
use crate::{
    adapter::{AdapterConfig, AttentionMatrix, Bottleneck, InitWeights, Lora, ReductionFactor, Scaling},
    job::{
        keys::{BOTTLENECK, LORA},
        tree::{Table, Value},
    },
};

/// The method of a job that names none.
const DEFAULT_METHOD: &str = "seq_bn";

impl<'t> Resolver<'t> {
    /// The adapter of the task at `path`.
    pub(super) fn adapter(&mut self, own: Option<&'t Table>, path: &str) -> AdapterConfig {
        let defaults = self.default_table("adapter");
        let path = format!("{path}.adapter");
        let own_method = own.and_then(|table| table.text("method"));
        let default_method = || defaults.and_then(|table| table.text("method"));
        let method = own_method.clone().or_else(default_method).unwrap_or_else(|| DEFAULT_METHOD.to_owned());
        let preset = AdapterConfig::preset(&method).unwrap_or(AdapterConfig::Bottleneck(Bottleneck::sequential()));
        let inherits = own_method.is_none_or(|own| {
            let of_defaults = defaults.filter(|table| table.has("method")).map_or_else(
                || AdapterConfig::preset(DEFAULT_METHOD),
                |table| {
                    let (_, item) = table.entries.iter().find(|(name, _)| name == "method")?;
                    AdapterConfig::preset(item.value.text()?)
                },
            );
            of_defaults == AdapterConfig::preset(&own)
        });
        let layers = self.layers(own, defaults.filter(|_| inherits), &path);
        if !layers.unsure(&["method"]) {
            self.check_family(own, &preset, &method);
        }
        match preset {
            AdapterConfig::Bottleneck(config) => self.bottleneck(&layers, config, &path),
            AdapterConfig::Lora(config) => self.lora(&layers, config, &path),
        }
    }

    /// The method of a task that tries no other; `None` where it was refused.
    pub(super) fn method_of(&self, task: &Table) -> Option<String> {
        let own = task.table("adapter").filter(|table| table.has("method"));
        match own.or_else(|| self.default_table("adapter").filter(|table| table.has("method"))) {
            Some(table) => table.text("method"),
            None => Some(DEFAULT_METHOD.to_owned()),
        }
    }

    /// Options in `[defaults.adapter]` must be those of its own method.
    pub(super) fn check_default_adapter(&mut self) {
        // Looks without `get`, which would count as reading the defaults.
        let defaults = self.defaults.and_then(|table| table.entries.iter().find(|(name, _)| name == "adapter"));
        let Some(table) = defaults.and_then(|(_, item)| item.value.table()) else { return };
        let method = table.entries.iter().find(|(name, _)| name == "method").map(|(_, item)| &item.value);
        let method = match method {
            None => DEFAULT_METHOD,
            Some(Value::Text(method)) => method,
            Some(_) => return,
        };
        if let Some(preset) = AdapterConfig::preset(method) {
            self.check_family(Some(table), &preset, method);
        }
    }

    fn check_family(&mut self, table: Option<&Table>, preset: &AdapterConfig, method: &str) {
        let (others, family, mend) = match preset {
            AdapterConfig::Bottleneck(_) => (LORA, "LoRA", "lora"),
            AdapterConfig::Lora(_) => (BOTTLENECK, "bottleneck adapters", "seq_bn"),
        };
        for (name, item) in table.iter().flat_map(|table| &table.entries) {
            if others.contains(&name.as_str()) {
                let message = format!("`{name}` is an option of {family}, and the method here is {method:?}");
                let help = format!("remove it, or set `method = {mend:?}`");
                self.at(item.key.clone(), Problem::new("wrong-method", message, help));
            } else if name == "init_weights"
                && let Some(init) = item.value.word::<InitWeights>()
            {
                let fits = match preset {
                    AdapterConfig::Bottleneck(_) => !matches!(init, InitWeights::Lora),
                    AdapterConfig::Lora(_) => matches!(init, InitWeights::Lora | InitWeights::Bert),
                };
                let allowed = match preset {
                    AdapterConfig::Bottleneck(_) => "\"bert\", \"mam_adapter\" or \"houlsby\"",
                    AdapterConfig::Lora(_) => "\"lora\" or \"bert\"",
                };
                if !fits {
                    let message = format!("`init_weights` of method {method:?} must be {allowed}");
                    self.at(item.span.clone(), Problem::new("wrong-method", message, "remove it to take the preset's"));
                }
            }
        }
    }

    fn bottleneck(&mut self, layers: &Layers<'t>, mut config: Bottleneck, path: &str) -> AdapterConfig {
        for (name, flag) in [
            ("mh_adapter", &mut config.mh_adapter),
            ("output_adapter", &mut config.output_adapter),
            ("original_ln_before", &mut config.original_ln_before),
            ("original_ln_after", &mut config.original_ln_after),
            ("ln_before", &mut config.ln_before),
            ("ln_after", &mut config.ln_after),
            ("is_parallel", &mut config.is_parallel),
            ("use_gating", &mut config.use_gating),
            ("residual_before_ln", &mut config.residual_before_ln),
            ("adapter_residual_before_ln", &mut config.adapter_residual_before_ln),
        ] {
            layers.take(name, Value::flag, flag);
        }
        layers.take("reduction_factor", reduction_factor, &mut config.reduction_factor);
        layers.take("non_linearity", Value::word, &mut config.non_linearity);
        layers.take("init_weights", Value::word, &mut config.init_weights);
        layers.take("scaling", scaling, &mut config.scaling);
        layers.take("leave_out", layer_set, &mut config.leave_out);
        layers.take("dropout", Value::number, &mut config.dropout);
        if !config.mh_adapter && !config.output_adapter && !layers.unsure(&["mh_adapter", "output_adapter"]) {
            let message = "the adapter stands nowhere: `mh_adapter` and `output_adapter` are both false";
            let problem = Problem::new("no-adapter-site", message, "set one of them to true");
            self.refuse(&format!("{path}.output_adapter"), problem);
        }
        AdapterConfig::Bottleneck(config)
    }

    fn lora(&mut self, layers: &Layers<'t>, mut config: Lora, path: &str) -> AdapterConfig {
        for (name, flag) in [
            ("selfattn_lora", &mut config.selfattn_lora),
            ("intermediate_lora", &mut config.intermediate_lora),
            ("output_lora", &mut config.output_lora),
            ("use_gating", &mut config.use_gating),
        ] {
            layers.take(name, Value::flag, flag);
        }
        layers.take("leave_out", layer_set, &mut config.leave_out);
        layers.take("r", Value::whole, &mut config.r);
        layers.take("alpha", Value::number, &mut config.alpha);
        layers.take("dropout", Value::number, &mut config.dropout);
        layers.take("attn_matrices", matrices, &mut config.attn_matrices);
        layers.take("init_weights", Value::word, &mut config.init_weights);
        let nowhere = !config.selfattn_lora && !config.intermediate_lora && !config.output_lora;
        if nowhere && !layers.unsure(&["selfattn_lora", "intermediate_lora", "output_lora"]) {
            let message = "LoRA stands nowhere: `selfattn_lora`, `intermediate_lora` and `output_lora` are all false";
            let problem = Problem::new("no-adapter-site", message, "set one of them to true");
            self.refuse(&format!("{path}.selfattn_lora"), problem);
        } else if !config.selfattn_lora && layers.has("attn_matrices") {
            let message = "`attn_matrices` is without effect: `selfattn_lora` is false";
            let problem = Problem::new("no-effect", message, "remove it, or set `selfattn_lora = true`");
            self.warn(&format!("{path}.attn_matrices"), problem);
        }
        AdapterConfig::Lora(config)
    }
}

fn reduction_factor(value: &Value) -> Option<ReductionFactor> {
    match value {
        Value::Table(table) => {
            let entry = |(name, item): &(String, crate::job::tree::Item)| Some((name.clone(), item.value.number()?));
            table.entries.iter().map(entry).collect::<Option<_>>().map(ReductionFactor::Layers)
        }
        value => value.number().map(ReductionFactor::All),
    }
}

fn scaling(value: &Value) -> Option<Scaling> {
    match value {
        Value::Text(_) => value.word().map(Scaling::Trained),
        value => value.number().map(Scaling::Constant),
    }
}

fn matrices(value: &Value) -> Option<Vec<AttentionMatrix>> {
    let mut matrices: Vec<AttentionMatrix> = value.each(Value::word)?;
    matrices.sort_unstable();
    matrices.dedup();
    Some(matrices)
}
