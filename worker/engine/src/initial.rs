//! Initial weights: a function of the seed and of each tensor's role.
//!
//! A role is a tensor's name without the trunk's prefix and without the module's own name, so equal seeds give equal
//! weights whatever an adapter is called and wherever it is trained.

use graftwork_model::{HostTensor, Tensors, TrunkDescription};
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig, InitWeights},
    digest::Digest,
    random::{Purpose, Stream},
};

use crate::{EngineError, setup::Setup};

/// How one tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Constant(f32),
    /// Normal numbers of this deviation.
    Normal(f32),
    /// Normal numbers of this deviation, redrawn beyond two deviations.
    CutNormal(f32),
    /// Uniform numbers between minus and plus one over the root of the number of inputs: what Kaiming's rule with
    /// a = √5 gives, and torch.nn.Linear's default for weight and bias.
    Uniform {
        inputs: usize,
    },
    /// 1 on the diagonal, 10⁻⁶ elsewhere.
    NearIdentity,
}

/// Values of all trained tensors before the first update.
///
/// # Errors
/// When a method is given an initialisation that it does not have, or its shapes are not possible.
pub fn initial_weights(setup: &Setup, description: &TrunkDescription, seed: u64) -> Result<Tensors, EngineError> {
    let stream = Stream::new(seed, Purpose::InitialWeights);
    let mut tensors = Tensors::new();
    for module in setup.module_shapes(description)?.into_iter().filter(|module| module.trained) {
        for (name, shape) in module.shapes {
            let start = start_of(setup, description, &module.name, &name, &shape)?;
            let role = role_of(&name, description.prefix, &module.name);
            let values = draw(start, &shape, stream, &role);
            tensors.insert(name, HostTensor { shape, values });
        }
    }
    Ok(tensors)
}

/// `bert.encoder.layer.0.output.adapters.NAME.adapter_up.weight` without prefix and name.
fn role_of(tensor: &str, prefix: &str, module: &str) -> String {
    let bare = tensor.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(tensor);
    for collection in ["adapters", "loras", "adapter_fusion_layer", "heads"] {
        let named = format!("{collection}.{module}.");
        if let Some(at) = bare.find(&named) {
            return format!("{}{collection}.{}", &bare[..at], &bare[at + named.len()..]);
        }
    }
    bare.to_owned()
}

fn start_of(
    setup: &Setup,
    description: &TrunkDescription,
    module: &str,
    tensor: &str,
    shape: &[usize],
) -> Result<Start, EngineError> {
    #[expect(clippy::cast_possible_truncation, reason = "a deviation, rounded to the type of the weights")]
    let deviation = description.initializer_range as f32;
    if tensor.starts_with("heads.") {
        return Ok(if is_bias(tensor) { Start::Constant(0.0) } else { Start::Normal(deviation) });
    }
    if tensor.contains(".adapter_fusion_layer.") {
        return Ok(setup.fusions.get(module).map_or(Start::Normal(0.02), |config| of_fusion(config, tensor)));
    }
    let config = setup.adapters.iter().find(|(name, _)| name.as_str() == module).map(|(_, config)| config);
    let start = match config {
        Some(AdapterConfig::Bottleneck(config)) => of_bottleneck(config.init_weights, tensor, shape, description),
        Some(AdapterConfig::Lora(config)) => of_lora(config.init_weights, tensor, shape),
        None => None,
    };
    start.ok_or_else(|| {
        EngineError::Setup(format!(
            "adapter {module} has an init_weights that its method does not know; \
             bottlenecks take bert, mam_adapter and houlsby, LoRA takes lora and bert"
        ))
    })
}

fn is_bias(tensor: &str) -> bool {
    tensor.rsplit('.').next() == Some("bias")
}

fn of_fusion(config: &FusionConfig, tensor: &str) -> Start {
    if is_bias(tensor) {
        Start::Constant(0.0)
    } else if tensor.ends_with(".value.weight") && config.value_initialized {
        Start::NearIdentity
    } else {
        Start::Normal(0.02)
    }
}

fn of_bottleneck(init: InitWeights, tensor: &str, shape: &[usize], description: &TrunkDescription) -> Option<Start> {
    if init == InitWeights::Lora {
        return None;
    }
    let last = |name: &str| tensor.ends_with(name);
    if last(".scaling") || (tensor.contains(".adapter_norm_") && last(".weight")) {
        return Some(Start::Constant(1.0));
    }
    if tensor.contains(".gate.") && init == InitWeights::Houlsby {
        return Some(Start::Uniform { inputs: description.hidden_size as usize });
    }
    if last(".bias") {
        return Some(Start::Constant(0.0));
    }
    Some(match init {
        InitWeights::MamAdapter if tensor.contains(".adapter_down.") => Start::Uniform { inputs: *shape.last()? },
        InitWeights::MamAdapter if tensor.contains(".adapter_up.") => Start::Constant(0.0),
        InitWeights::Houlsby => Start::CutNormal(0.01),
        _ => Start::Normal(0.02),
    })
}

fn of_lora(init: InitWeights, tensor: &str, shape: &[usize]) -> Option<Start> {
    let inputs = *shape.last()?;
    Some(match (init, tensor.rsplit('.').next()?) {
        (InitWeights::Lora, "lora_A") => Start::Uniform { inputs },
        (InitWeights::Bert, "lora_A" | "lora_B") | (InitWeights::Lora | InitWeights::Bert, "weight") => {
            Start::Normal(0.02)
        }
        (InitWeights::Lora, "lora_B") | (InitWeights::Lora | InitWeights::Bert, "bias") => Start::Constant(0.0),
        _ => return None,
    })
}

fn draw(start: Start, shape: &[usize], stream: Stream, role: &str) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    match start {
        Start::Constant(constant) => values.fill(constant),
        Start::Normal(deviation) => {
            stream.fill_normal(major(role), &mut values);
            for value in &mut values {
                *value *= deviation;
            }
        }
        Start::CutNormal(deviation) => {
            stream.fill_normal(major(role), &mut values);
            let mut again = vec![0.0; values.len()];
            let mut round = 0;
            while values.iter().any(|value| value.abs() > 2.0) {
                round += 1;
                stream.fill_normal(major(&format!("{role}, draw {round}")), &mut again);
                for (value, other) in values.iter_mut().zip(&again).filter(|(value, _)| value.abs() > 2.0) {
                    *value = *other;
                }
            }
            for value in &mut values {
                *value *= deviation;
            }
        }
        Start::Uniform { inputs } => {
            let bound = 1.0 / (inputs as f32).sqrt();
            stream.fill_uniform(major(role), &mut values);
            for value in &mut values {
                *value = (*value * 2.0 - 1.0) * bound;
            }
        }
        Start::NearIdentity => {
            let width = shape.last().copied().unwrap_or(1);
            for (index, value) in values.iter_mut().enumerate() {
                *value = if index / width == index % width { 1.0 } else { 1e-6 };
            }
        }
    }
    values
}

/// The stream's major position of a role.
fn major(role: &str) -> u32 {
    let digest = Digest::of(role.as_bytes());
    let [a, b, c, d, ..] = *digest.bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{adapter_setup, tiny_description};

    fn start(preset: &str, name: &str, seed: u64) -> Tensors {
        initial_weights(&adapter_setup(preset, name), &tiny_description(), seed).unwrap()
    }

    #[test]
    fn equal_seeds_give_equal_weights_whatever_the_name() {
        let (first, second) = (start("seq_bn", "trained", 3), start("seq_bn", "other", 3));
        let values = |tensors: &Tensors| tensors.values().map(|tensor| tensor.values.clone()).collect::<Vec<_>>();
        assert_eq!(values(&first), values(&second));
        assert_ne!(values(&first), values(&start("seq_bn", "trained", 4)));
    }

    #[test]
    fn layers_start_differently() {
        let tensors = start("seq_bn", "a", 3);
        let of = |layer: u32| &tensors[&format!("bert.encoder.layer.{layer}.output.adapters.a.adapter_up.weight")];
        assert_ne!(of(0).values, of(1).values);
    }

    #[test]
    fn an_update_starts_at_zero_where_the_method_says_so() {
        for (preset, zero) in [("lora", "lora_B"), ("par_bn", "adapter_up.weight")] {
            let tensors = start(preset, "a", 3);
            let mut seen = 0;
            for (name, tensor) in tensors.iter().filter(|(name, _)| !name.starts_with("heads.")) {
                if name.ends_with(zero) {
                    seen += 1;
                    assert!(tensor.values.iter().all(|&value| value == 0.0), "{name}");
                } else if name.ends_with(".weight") || name.ends_with("lora_A") {
                    let bound = 1.0 / (*tensor.shape.last().unwrap() as f32).sqrt();
                    let largest = tensor.values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                    assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} against {bound}");
                }
            }
            assert!(seen > 0);
        }
    }

    #[test]
    fn normal_weights_have_the_asked_deviation() {
        let tensors = start("seq_bn", "a", 3);
        let values = &tensors["heads.a.1.weight"].values;
        let variance = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((variance.sqrt() - 0.02).abs() < 0.002, "{}", variance.sqrt());
    }

    #[test]
    fn a_cut_normal_stays_within_two_deviations() {
        let values = draw(Start::CutNormal(0.01), &[1000], Stream::new(1, Purpose::InitialWeights), "x");
        assert!(values.iter().all(|value| value.abs() <= 0.02));
    }

    #[test]
    fn an_initialisation_of_another_method_is_refused() {
        let mut setup = adapter_setup("lora", "a");
        for config in setup.adapters.values_mut() {
            if let AdapterConfig::Lora(lora) = config {
                lora.init_weights = InitWeights::Houlsby;
            }
        }
        let error = initial_weights(&setup, &tiny_description(), 1).unwrap_err().to_string();
        assert!(error.contains("adapter a has an init_weights"), "{error}");
    }
}
