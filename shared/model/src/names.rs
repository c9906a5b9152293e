//! Names and shapes of the tensors that training makes, as AdapterHub's state dictionaries name them.
//!
//! Lists hold each trained tensor once, in the order of the Python peer's state dictionaries: by layer, within a layer
//! from the attention to the feed-forward block. Linear weights are `[outputs, inputs]`. A layer norm in front of a
//! bottleneck has two names in AdapterHub (`adapter_norm_before` and `adapter_down.0`); here the first is listed, and
//! [`norm_alias`] gives the second.

use graftwork_shared::{
    adapter::{AdapterConfig, AttentionMatrix, Bottleneck, FusionConfig, Lora, Scaling, TrainedScaling},
    head::Head,
};

use crate::{error::ModelError, tensor::Shape, trunk::TrunkDescription};

/// Tensors of one adapter with the trunk's prefix, such as `bert.encoder.layer.0.output.adapters.NAME.adapter_up.bias`.
///
/// # Errors
/// When a reduction factor is missing for a layer or not positive, `r` is 0, or a layer that is left out does not exist.
pub fn adapter_shapes(config: &AdapterConfig, trunk: &TrunkDescription, name: &str) -> Result<Vec<Shape>, ModelError> {
    if let Some(layer) = config.leave_out().iter().find(|layer| **layer >= trunk.layers) {
        let last = trunk.layers - 1;
        return Err(ModelError::Options(format!(
            "leave_out names layer {layer}, the base model has layers 0 to {last}"
        )));
    }
    let mut shapes = Vec::new();
    for layer in (0..trunk.layers).filter(|layer| !config.leave_out().contains(layer)) {
        let at = format!("{}.encoder.layer.{layer}", trunk.prefix);
        match config {
            AdapterConfig::Bottleneck(config) => {
                for place in bottleneck_places(config) {
                    bottleneck_site(config, trunk, layer, &format!("{at}.{place}.adapters.{name}"), &mut shapes)?;
                }
            }
            AdapterConfig::Lora(config) => lora_layer(config, trunk, &at, name, &mut shapes)?,
        }
    }
    if shapes.is_empty() {
        return Err(ModelError::Options("the adapter has no site: every place or layer is switched off".into()));
    }
    Ok(shapes)
}

/// The second name of a trained layer norm in front of a bottleneck: `…adapter_norm_before.weight` is stored as
/// `…adapter_down.0.weight` too. `None` for every other tensor.
pub fn norm_alias(name: &str) -> Option<String> {
    let (site, last) = name.rsplit_once(".adapter_norm_before.")?;
    Some(format!("{site}.adapter_down.0.{last}"))
}

/// Places of a layer that hold a bottleneck.
fn bottleneck_places(config: &Bottleneck) -> impl Iterator<Item = &'static str> {
    [("attention.output", config.mh_adapter), ("output", config.output_adapter)]
        .into_iter()
        .filter_map(|(place, used)| used.then_some(place))
}

fn bottleneck_site(
    config: &Bottleneck,
    trunk: &TrunkDescription,
    layer: u32,
    at: &str,
    shapes: &mut Vec<Shape>,
) -> Result<(), ModelError> {
    let hidden = trunk.hidden_size as usize;
    let width = bottleneck_width(config, trunk, layer)?;
    let mut push = |name: &str, shape: Vec<usize>| shapes.push((format!("{at}.{name}"), shape));
    match config.scaling {
        Scaling::Constant(_) => {}
        Scaling::Trained(TrainedScaling::Learned) => push("scaling", vec![1]),
        Scaling::Trained(TrainedScaling::Channel) => push("scaling", vec![hidden]),
    }
    let down = if config.ln_before {
        push("adapter_norm_before.weight", vec![hidden]);
        push("adapter_norm_before.bias", vec![hidden]);
        "adapter_down.1"
    } else {
        "adapter_down.0"
    };
    push(&format!("{down}.weight"), vec![width, hidden]);
    push(&format!("{down}.bias"), vec![width]);
    push("adapter_up.weight", vec![hidden, width]);
    push("adapter_up.bias", vec![hidden]);
    if config.ln_after {
        push("adapter_norm_after.weight", vec![hidden]);
        push("adapter_norm_after.bias", vec![hidden]);
    }
    if config.use_gating {
        push("gate.weight", vec![1, hidden]);
        push("gate.bias", vec![1]);
    }
    Ok(())
}

fn bottleneck_width(config: &Bottleneck, trunk: &TrunkDescription, layer: u32) -> Result<usize, ModelError> {
    let Some(factor) = config.reduction_factor.of(layer) else {
        let problem = format!("reduction_factor names neither layer {layer} nor \"default\"; add one of them");
        return Err(ModelError::Options(problem));
    };
    let least = f64::from(trunk.hidden_size) / f64::from(1 << 20);
    if !factor.is_finite() || factor < least {
        let problem = format!("reduction_factor of layer {layer} is {factor}; a number from {least} is needed");
        return Err(ModelError::Options(problem));
    }
    Ok(config.width(trunk.hidden_size, layer).expect("the factor was found above") as usize)
}

fn lora_layer(
    config: &Lora,
    trunk: &TrunkDescription,
    at: &str,
    name: &str,
    shapes: &mut Vec<Shape>,
) -> Result<(), ModelError> {
    if config.r == 0 {
        return Err(ModelError::Options("r is 0; a rank of at least 1 is needed".into()));
    }
    let (hidden, inner, rank) = (trunk.hidden_size as usize, trunk.intermediate_size as usize, config.r as usize);
    let mut sites = Vec::new();
    if config.selfattn_lora {
        for (matrix, place) in
            [(AttentionMatrix::Q, "query"), (AttentionMatrix::K, "key"), (AttentionMatrix::V, "value")]
        {
            if config.attn_matrices.contains(&matrix) {
                sites.push((format!("attention.self.{place}"), hidden, hidden));
            }
        }
    }
    if config.intermediate_lora {
        sites.push(("intermediate.dense".to_owned(), inner, hidden));
    }
    if config.output_lora {
        sites.push(("output.dense".to_owned(), hidden, inner));
    }
    for (place, outputs, inputs) in sites {
        let mut push = |tensor: &str, shape| shapes.push((format!("{at}.{place}.loras.{name}.{tensor}"), shape));
        push("lora_A", vec![rank, inputs]);
        push("lora_B", vec![outputs, rank]);
        if config.use_gating {
            push("gate.weight", vec![1, inputs]);
            push("gate.bias", vec![1]);
        }
    }
    Ok(())
}

/// Tensors of a fusion layer over `adapters`, such as `bert.encoder.layer.0.output.adapter_fusion_layer.a,b.key.bias`.
///
/// A fusion stands at every place where its adapters stand; a layer that all of them leave out has none.
///
/// # Errors
/// When an adapter is not a bottleneck, or two adapters stand at different places.
pub fn fusion_shapes(
    config: &FusionConfig,
    adapters: &[&AdapterConfig],
    trunk: &TrunkDescription,
    name: &str,
) -> Result<Vec<Shape>, ModelError> {
    let mut bottlenecks = Vec::new();
    for adapter in adapters {
        let AdapterConfig::Bottleneck(bottleneck) = adapter else {
            return Err(ModelError::Options("only bottleneck adapters can be fused; this one is LoRA".into()));
        };
        bottlenecks.push(bottleneck);
    }
    let Some(first) = bottlenecks.first() else {
        return Err(ModelError::Options("a fusion needs at least one adapter".into()));
    };
    let places = |config: &Bottleneck| (config.mh_adapter, config.output_adapter);
    if bottlenecks.iter().any(|other| places(other) != places(first)) {
        let problem =
            "fused adapters must agree in mh_adapter and output_adapter, since one fusion layer stands at each place";
        return Err(ModelError::Options(problem.into()));
    }
    if !config.query && !config.key && !config.value {
        return Err(ModelError::Options("a fusion needs a query, a key or a value projection; all are off".into()));
    }
    let hidden = trunk.hidden_size as usize;
    let mut shapes = Vec::new();
    for layer in (0..trunk.layers).filter(|layer| bottlenecks.iter().any(|b| !b.leave_out.contains(layer))) {
        for place in bottleneck_places(first) {
            let at = format!("{}.encoder.layer.{layer}.{place}.adapter_fusion_layer.{name}", trunk.prefix);
            for (used, matrix, bias) in
                [(config.query, "query", true), (config.key, "key", true), (config.value, "value", false)]
            {
                if used {
                    shapes.push((format!("{at}.{matrix}.weight"), vec![hidden, hidden]));
                    shapes.extend(bias.then(|| (format!("{at}.{matrix}.bias"), vec![hidden])));
                }
            }
        }
    }
    Ok(shapes)
}

/// Tensors of a head, such as `heads.NAME.4.weight`; they carry no base prefix.
///
/// Dropout and activation modules are counted, so linear layer `k` has index `3k + 1`. Only the last layer may lack
/// its bias.
///
/// # Errors
/// When the head has no layer, or fewer than two classes.
pub fn head_shapes(head: &Head, trunk: &TrunkDescription, name: &str) -> Result<Vec<Shape>, ModelError> {
    head_sizes(head, trunk.hidden_size as usize, name)
}

pub(crate) fn head_sizes(head: &Head, hidden: usize, name: &str) -> Result<Vec<Shape>, ModelError> {
    if !(1..=16).contains(&head.layers) {
        return Err(ModelError::Options(format!("head \"{name}\" has {} layers; 1 to 16 are allowed", head.layers)));
    }
    let classes = matches!(head.output, graftwork_shared::head::HeadOutput::Classification { .. });
    if classes && head.outputs() < 2 {
        let problem = format!("head \"{name}\" has {} classes; at least 2 are needed", head.outputs());
        return Err(ModelError::Options(problem));
    }
    let mut shapes = Vec::new();
    for layer in 0..head.layers {
        let last = layer + 1 == head.layers;
        let outputs = if last { head.outputs() } else { hidden };
        let at = format!("heads.{name}.{}", 3 * layer + 1);
        shapes.push((format!("{at}.weight"), vec![outputs, hidden]));
        if !last || head.bias {
            shapes.push((format!("{at}.bias"), vec![outputs]));
        }
    }
    Ok(shapes)
}
