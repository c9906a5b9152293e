//! One line for people that says how a stage trains.

use graftwork_scheduler::FusedSource;
use graftwork_shared::adapter::{AdapterConfig, FusionConfig, PRESETS, ReductionFactor};
use serde::Serialize;
use serde_json::{Map, Value};

/// The preset with its size, such as `seq_bn, reduction factor 16`; or the nearest preset with each option that is
/// another one, such as `seq_bn with reduction_factor 8, dropout 0.1`.
pub(super) fn adapter_line(config: &AdapterConfig) -> String {
    let differences = |name: &&'static str| {
        let preset = AdapterConfig::preset(name).filter(|preset| family(preset) == family(config))?;
        Some((*name, differences(&preset, config)))
    };
    // Of presets that are equally near the first one counts, so the older names are never said.
    let nearest = PRESETS.iter().filter_map(differences).min_by_key(|(_, differences)| differences.len());
    let (preset, differences) = nearest.unwrap_or_default();
    if !differences.is_empty() {
        return format!("{preset} with {}", differences.join(", "));
    }
    match config {
        AdapterConfig::Bottleneck(options) => match &options.reduction_factor {
            ReductionFactor::All(factor) => format!("{preset}, reduction factor {factor}"),
            ReductionFactor::Layers(_) => preset.to_owned(),
        },
        AdapterConfig::Lora(options) => format!("{preset}, rank {}, alpha {}", options.r, options.alpha),
    }
}

fn family(config: &AdapterConfig) -> std::mem::Discriminant<AdapterConfig> {
    std::mem::discriminant(config)
}

/// Such as `fusion of spam, tone`, or `fusion of spam, tone with value false`.
pub(super) fn fusion_line(config: &FusionConfig, fused: &[FusedSource]) -> String {
    let names: Vec<String> = fused.iter().map(FusedSource::name).collect();
    let line = format!("fusion of {}", names.join(", "));
    let differences = differences(&FusionConfig::default(), config);
    if differences.is_empty() { line } else { format!("{line} with {}", differences.join(", ")) }
}

/// Each option that is not the preset's, by the names of job files and of AdapterHub.
fn differences<T: Serialize>(preset: &T, config: &T) -> Vec<String> {
    let (preset, config) = (options(preset), options(config));
    let other = config.iter().filter(|(name, value)| preset.get(*name) != Some(value));
    other.map(|(name, value)| format!("{name} {}", shown(value))).collect()
}

fn options<T: Serialize>(config: &T) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(options)) => options,
        _ => Map::new(),
    }
}

/// A value as a person writes it: words without quotes, numbers without an idle `.0`.
fn shown(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        Value::Null => "off".to_owned(),
        Value::Array(elements) => format!("[{}]", elements.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key} = {}", shown(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string()),
        Value::Bool(flag) => flag.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use graftwork_shared::adapter::{NonLinearity, Scaling};

    use super::*;

    fn bottleneck(preset: &str, change: impl FnOnce(&mut graftwork_shared::adapter::Bottleneck)) -> String {
        let Some(AdapterConfig::Bottleneck(mut options)) = AdapterConfig::preset(preset) else { panic!("{preset}") };
        change(&mut options);
        adapter_line(&AdapterConfig::Bottleneck(options))
    }

    #[test]
    fn a_preset_is_named_with_each_option_that_differs() {
        assert_eq!(bottleneck("seq_bn", |_| ()), "seq_bn, reduction factor 16");
        assert_eq!(bottleneck("pfeiffer", |options| options.dropout = 0.1), "seq_bn with dropout 0.1");
        let several = bottleneck("double_seq_bn", |options| {
            options.reduction_factor = ReductionFactor::All(8.0);
            options.non_linearity = NonLinearity::GeluNew;
            options.leave_out = vec![0, 1];
        });
        assert_eq!(several, "double_seq_bn with reduction_factor 8, non_linearity gelu_new, leave_out [0, 1]");
        let by_layer = BTreeMap::from([("1".to_owned(), 4.0), ("default".to_owned(), 16.5)]);
        let by_layer = bottleneck("par_bn", |options| options.reduction_factor = ReductionFactor::Layers(by_layer));
        assert_eq!(by_layer, "par_bn with reduction_factor { 1 = 4, default = 16.5 }");
        let scaled = bottleneck("scaled_par_bn", |options| options.scaling = Scaling::Constant(2.5));
        assert_eq!(scaled, "par_bn with scaling 2.5", "the nearest preset");
    }

    #[test]
    fn lora_says_its_rank() {
        let Some(AdapterConfig::Lora(mut options)) = AdapterConfig::preset("lora") else { panic!("lora") };
        let plain = adapter_line(&AdapterConfig::Lora(options.clone()));
        assert_eq!(plain, format!("lora, rank {}, alpha {}", options.r, options.alpha));
        options.r = 4;
        options.use_gating = true;
        assert_eq!(adapter_line(&AdapterConfig::Lora(options)), "lora with r 4, use_gating true");
    }

    #[test]
    fn a_fusion_says_its_own_options() {
        let fused: Vec<FusedSource> = Vec::new();
        assert_eq!(fusion_line(&FusionConfig::default(), &fused), "fusion of ");
        let config = FusionConfig { query_before_ln: true, dropout_prob: Some(0.5), ..FusionConfig::default() };
        assert_eq!(fusion_line(&config, &fused), "fusion of  with query_before_ln true, dropout_prob 0.5");
    }
}
