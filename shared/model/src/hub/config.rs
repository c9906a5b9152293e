//! The `config` objects of adapters and fusions, to and from the options of `graftwork_shared::adapter`.
//!
//! Every option of AdapterHub is either understood, harmless at the value it has, or refused by name; nothing that
//! changes the arithmetic is passed over. What is written holds all keys that the peer writes.

use graftwork_shared::adapter::{
    AdapterConfig, AttentionMatrix, Bottleneck, FusionConfig, InitWeights, Lora, NonLinearity,
};
use serde_json::{Map, Value, json};

use super::options::Options;
use crate::{error::ModelError, python_json::integer_if_whole};

/// Keys that older releases wrote and that no release reads any more.
const FORGOTTEN: [&str; 4] = ["attention_type", "new_attention_norm", "invertible_adapter", "init_weights_seed"];

/// What the age of a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Age {
    /// Written before the `version` key: activations had other names.
    pub(crate) without_version: bool,
    /// Written by a release of `adapters` below 1.1.0, which trained LoRA as if alpha were r.
    pub(crate) alpha_was_r: bool,
    /// A task adapter of the first releases, whose configuration names an invertible adapter that was never trained.
    pub(crate) unused_invertible: bool,
}

impl Age {
    pub(crate) fn of(envelope: &Options, has_invertible: bool) -> Self {
        let version = envelope.get("version").and_then(Value::as_str);
        let alpha_was_r = version.and_then(|version| version.strip_prefix("adapters.")).is_some_and(|version| {
            let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
            (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (1, 1)
        });
        let task = envelope.get("type").and_then(Value::as_str) == Some("text_task");
        Self {
            without_version: !envelope.map.contains_key("version"),
            alpha_was_r,
            unused_invertible: task && !has_invertible,
        }
    }
}

/// Reads the `config` object of an `adapter_config.json`.
pub(crate) fn parse_adapter(options: &Options, age: Age) -> Result<AdapterConfig, ModelError> {
    match options.get("architecture").map(|value| value.as_str().unwrap_or_default()) {
        None => parse_bottleneck(options, age).map(AdapterConfig::Bottleneck),
        Some("lora") => parse_lora(options, age).map(AdapterConfig::Lora),
        Some(_) => {
            Err(options.wrong("architecture", "implemented are bottleneck adapters (no \"architecture\") and \"lora\""))
        }
    }
}

fn parse_bottleneck(options: &Options, age: Age) -> Result<Bottleneck, ModelError> {
    let no = |key: &str, harmless: &[Value], why: &str| options.refuse(key, harmless, why);
    no("phm_layer", &[json!(false)], "compacter layers are not implemented; it must be false")?;
    no("stochastic_depth", &[json!(0)], "stochastic depth is not implemented; it must be 0")?;
    no("cross_adapter", &[json!(false)], "encoders have no cross attention; it must be false")?;
    if !age.unused_invertible {
        no("inv_adapter", &[], "invertible adapters are not implemented; it must be null")?;
    }
    no("residual_before_ln", &[json!(true), json!(false)], "implemented are true and false")?;
    let known = written_bottleneck(&Bottleneck::sequential());
    refuse_unknown(options, &known)?;
    let defaults = Bottleneck::sequential();
    let config = Bottleneck {
        mh_adapter: options.flag("mh_adapter", None)?,
        output_adapter: options.flag("output_adapter", None)?,
        reduction_factor: options.typed(
            "reduction_factor",
            None,
            "a number, or numbers by layer and \"default\", is needed",
        )?,
        non_linearity: parse_non_linearity(options, age)?,
        original_ln_before: options.flag("original_ln_before", Some(false))?,
        original_ln_after: options.flag("original_ln_after", Some(true))?,
        ln_before: options.flag("ln_before", Some(false))?,
        ln_after: options.flag("ln_after", Some(false))?,
        init_weights: parse_init(options, InitWeights::Bert)?,
        is_parallel: options.flag("is_parallel", Some(false))?,
        scaling: options.typed("scaling", Some(defaults.scaling), "a number, \"learned\" or \"channel\" is needed")?,
        use_gating: options.flag("use_gating", Some(false))?,
        residual_before_ln: options.flag("residual_before_ln", Some(true))?,
        adapter_residual_before_ln: options.flag("adapter_residual_before_ln", Some(false))?,
        leave_out: parse_leave_out(options)?,
        dropout: options.dropout("dropout")?.unwrap_or(0.0),
    };
    check_init(&AdapterConfig::Bottleneck(config.clone()), options.file)?;
    Ok(config)
}

fn parse_lora(options: &Options, age: Age) -> Result<Lora, ModelError> {
    let no = |key: &str, harmless: &[Value], why: &str| options.refuse(key, harmless, why);
    no("composition_mode", &[json!("add")], "implemented is \"add\"; \"scale\" is (IA)³")?;
    no("use_dora", &[json!(false)], "DoRA is not implemented; it must be false")?;
    no("vera_d", &[], "VeRA is not implemented; it must be null")?;
    no("vera_b", &[], "VeRA is not implemented; it must be null")?;
    no("dtype", &[json!("float32")], "LoRA is computed in float32; it must be null or \"float32\"")?;
    refuse_unknown(options, &written_lora(&Lora::default()))?;
    let defaults = Lora::default();
    let matrices = "a list of \"q\", \"k\" and \"v\" is needed";
    let mut attn_matrices: Vec<AttentionMatrix> =
        options.typed("attn_matrices", Some(defaults.attn_matrices), matrices)?;
    attn_matrices.sort_unstable();
    attn_matrices.dedup();
    let r = options.size("r", Some(defaults.r))?;
    let alpha = options.number("alpha", Some(defaults.alpha))?;
    let config = Lora {
        selfattn_lora: options.flag("selfattn_lora", Some(true))?,
        intermediate_lora: options.flag("intermediate_lora", Some(false))?,
        output_lora: options.flag("output_lora", Some(false))?,
        leave_out: parse_leave_out(options)?,
        r,
        alpha: if age.alpha_was_r { f64::from(r) } else { alpha },
        dropout: options.dropout("dropout")?.unwrap_or(0.0),
        attn_matrices,
        init_weights: parse_init(options, InitWeights::Lora)?,
        use_gating: options.flag("use_gating", Some(false))?,
    };
    check_init(&AdapterConfig::Lora(config.clone()), options.file)?;
    Ok(config)
}

/// The `config` object of an adapter, with every key that the peer writes.
pub(crate) fn write_adapter(config: &AdapterConfig) -> Result<Value, ModelError> {
    check_init(config, "the adapter's options")?;
    Ok(Value::Object(match config {
        AdapterConfig::Bottleneck(config) => written_bottleneck(config),
        AdapterConfig::Lora(config) => written_lora(config),
    }))
}

fn written_bottleneck(config: &Bottleneck) -> Map<String, Value> {
    use graftwork_shared::adapter::ReductionFactor;
    let reduction_factor = match &config.reduction_factor {
        ReductionFactor::All(factor) => integer_if_whole(*factor),
        ReductionFactor::Layers(map) => map.iter().map(|(layer, f)| (layer.clone(), integer_if_whole(*f))).collect(),
    };
    object(json!({
        "adapter_residual_before_ln": config.adapter_residual_before_ln,
        "cross_adapter": false,
        "dropout": config.dropout,
        "factorized_phm_W": true,
        "factorized_phm_rule": false,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": config.init_weights,
        "init_weights_seed": null,
        "inv_adapter": null,
        "inv_adapter_reduction_factor": null,
        "is_parallel": config.is_parallel,
        "learn_phm": true,
        "leave_out": config.leave_out,
        "ln_after": config.ln_after,
        "ln_before": config.ln_before,
        "mh_adapter": config.mh_adapter,
        "non_linearity": config.non_linearity,
        "original_ln_after": config.original_ln_after,
        "original_ln_before": config.original_ln_before,
        "output_adapter": config.output_adapter,
        "phm_bias": true,
        "phm_c_init": "normal",
        "phm_dim": 4,
        "phm_init_range": 0.0001,
        "phm_layer": false,
        "phm_rank": 1,
        "reduction_factor": reduction_factor,
        "residual_before_ln": config.residual_before_ln,
        "scaling": config.scaling,
        "shared_W_phm": false,
        "shared_phm_rule": true,
        "stochastic_depth": 0.0,
        "use_gating": config.use_gating,
    }))
}

fn written_lora(config: &Lora) -> Map<String, Value> {
    object(json!({
        "alpha": integer_if_whole(config.alpha),
        "architecture": "lora",
        "attn_matrices": config.attn_matrices,
        "composition_mode": "add",
        "dropout": config.dropout,
        "dtype": null,
        "init_weights": config.init_weights,
        "init_weights_seed": null,
        "intermediate_lora": config.intermediate_lora,
        "leave_out": config.leave_out,
        "output_lora": config.output_lora,
        "r": config.r,
        "selfattn_lora": config.selfattn_lora,
        "use_dora": false,
        "use_gating": config.use_gating,
        "vera_b": null,
        "vera_d": null,
    }))
}

/// Reads the `config` object of an `adapter_fusion_config.json`.
pub(crate) fn parse_fusion(options: &Options) -> Result<FusionConfig, ModelError> {
    refuse_unknown(options, &written_fusion(&FusionConfig::default()))?;
    options.refuse(
        "temperature",
        &[json!(false)],
        "an annealed softmax depends on how often the model was called and is not implemented; it must be false",
    )?;
    Ok(FusionConfig {
        key: options.flag("key", None)?,
        query: options.flag("query", None)?,
        value: options.flag("value", None)?,
        query_before_ln: options.flag("query_before_ln", Some(false))?,
        regularization: options.flag("regularization", Some(false))?,
        residual_before: options.flag("residual_before", Some(false))?,
        value_before_softmax: options.flag("value_before_softmax", Some(true))?,
        value_initialized: options.flag("value_initialized", Some(false))?,
        dropout_prob: options.dropout("dropout_prob")?,
    })
}

/// The `config` object of a fusion.
pub(crate) fn write_fusion(config: &FusionConfig) -> Value {
    Value::Object(written_fusion(config))
}

fn written_fusion(config: &FusionConfig) -> Map<String, Value> {
    object(json!({
        "dropout_prob": config.dropout_prob,
        "key": config.key,
        "query": config.query,
        "query_before_ln": config.query_before_ln,
        "regularization": config.regularization,
        "residual_before": config.residual_before,
        "temperature": false,
        "value": config.value,
        "value_before_softmax": config.value_before_softmax,
        "value_initialized": config.value_initialized,
    }))
}

fn parse_non_linearity(options: &Options, age: Age) -> Result<NonLinearity, ModelError> {
    let allowed = "implemented are relu, gelu, gelu_new, swish, silu, tanh, leakyrelu and linear";
    let text =
        options.get("non_linearity").and_then(Value::as_str).ok_or_else(|| options.wrong("non_linearity", allowed))?;
    let text = match (text, age.without_version) {
        ("gelu", true) => "gelu_new".to_owned(),
        ("gelu_orig", true) => "gelu".to_owned(),
        (other, _) => other.to_lowercase(),
    };
    serde_json::from_value(Value::String(text)).map_err(|_| options.wrong("non_linearity", allowed))
}

fn parse_init(options: &Options, default: InitWeights) -> Result<InitWeights, ModelError> {
    options.typed("init_weights", Some(default), "implemented are \"bert\", \"mam_adapter\", \"lora\" and \"houlsby\"")
}

/// Bottlenecks and LoRA each know their own ways to start.
fn check_init(config: &AdapterConfig, file: &str) -> Result<(), ModelError> {
    let (init, fits, allowed) = match config {
        AdapterConfig::Bottleneck(config) => {
            let fits = config.init_weights != InitWeights::Lora;
            (config.init_weights, fits, "bottlenecks start as \"bert\", \"mam_adapter\" or \"houlsby\"")
        }
        AdapterConfig::Lora(config) => {
            let fits = matches!(config.init_weights, InitWeights::Lora | InitWeights::Bert);
            (config.init_weights, fits, "LoRA starts as \"lora\" or \"bert\"")
        }
    };
    if fits {
        return Ok(());
    }
    let (file, key, found) = (file.to_owned(), "init_weights".to_owned(), json!(init).to_string());
    Err(ModelError::Value { file, key, found, allowed: allowed.to_owned() })
}

fn parse_leave_out(options: &Options) -> Result<Vec<u32>, ModelError> {
    options.typed("leave_out", Some(Vec::new()), "a list of layer numbers is needed")
}

/// A key that is not known may change the arithmetic; only an empty value is sure not to.
fn refuse_unknown(options: &Options, known: &Map<String, Value>) -> Result<(), ModelError> {
    for (key, value) in options.map {
        let empty = matches!(value, Value::Null | Value::Bool(false));
        if !empty && !known.contains_key(key) && !FORGOTTEN.contains(&key.as_str()) && key != "architecture" {
            return Err(options.wrong(key, "this option is not known; remove it if it changes nothing"));
        }
    }
    Ok(())
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { unreachable!("the literal is an object") };
    map
}
