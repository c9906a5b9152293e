//! One line for people that says how a stage trains.

use graftwork_scheduler::FusedSource;
use graftwork_shared::adapter::{AdapterConfig, Bottleneck, FusionConfig, PRESETS, ReductionFactor, Scaling};

/// Such as `seq_bn, reduction factor 16`.
pub(super) fn adapter_line(config: &AdapterConfig) -> String {
    let preset = PRESETS.into_iter().find(|name| AdapterConfig::preset(name).is_some_and(|p| same_shape(&p, config)));
    match config {
        AdapterConfig::Bottleneck(options) => {
            let factor = match &options.reduction_factor {
                ReductionFactor::All(factor) => format!("reduction factor {factor}"),
                ReductionFactor::Layers(_) => "reduction factor by layer".to_owned(),
            };
            format!("{}, {factor}", preset.unwrap_or("bottleneck"))
        }
        AdapterConfig::Lora(options) => format!("lora, rank {}, alpha {}", options.r, options.alpha),
    }
}

/// Whether they are one preset but for the options that a line names or that change no structure.
fn same_shape(preset: &AdapterConfig, config: &AdapterConfig) -> bool {
    let (AdapterConfig::Bottleneck(preset), AdapterConfig::Bottleneck(config)) = (preset, config) else { return false };
    let plain = Bottleneck {
        reduction_factor: preset.reduction_factor.clone(),
        leave_out: preset.leave_out.clone(),
        dropout: preset.dropout,
        scaling: match (preset.scaling, config.scaling) {
            (Scaling::Constant(_), Scaling::Constant(_)) => preset.scaling,
            _ => config.scaling,
        },
        ..config.clone()
    };
    plain == *preset
}

/// Such as `fusion of spam, tone`.
pub(super) fn fusion_line(config: &FusionConfig, fused: &[FusedSource]) -> String {
    let names: Vec<String> = fused.iter().map(FusedSource::name).collect();
    let plain = if *config == FusionConfig::default() { "" } else { ", own options" };
    format!("fusion of {}{plain}", names.join(", "))
}
