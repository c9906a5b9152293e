//! What a frozen transformer is: its sizes, read from a Hugging Face `config.json`, and the tensors that follow.
//!
//! Two architectures are known, BERT and RoBERTa; both are post-norm encoders with learned absolute positions and
//! differ in the base prefix of tensor names and in where positions start.

use std::path::Path;

use serde_json::Value;

use crate::error::ModelError;

/// The trunk's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// BERT (Devlin et al. 2019).
    Bert,
    /// RoBERTa (Liu et al. 2019): positions start behind the padding id.
    Roberta,
}

/// Activation of the trunk's feed-forward blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Exact GELU (erf).
    Gelu,
    /// GELU by its tanh approximation.
    GeluNew,
    /// max(0, x)
    Relu,
    /// x · sigmoid(x)
    Silu,
    /// tanh
    Tanh,
}

/// Sizes and constants of a frozen transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct TrunkDescription {
    /// Architecture.
    pub family: Family,
    /// Width of the hidden states.
    pub hidden_size: u32,
    /// Number of transformer layers.
    pub layers: u32,
    /// Attention heads of each layer; divides `hidden_size`.
    pub attention_heads: u32,
    /// Width between the two feed-forward projections.
    pub intermediate_size: u32,
    /// Rows of the word table.
    pub vocab_size: u32,
    /// Rows of the position table. [`Self::max_tokens`] says how long a sequence may be.
    pub max_positions: u32,
    /// Rows of the token-type table.
    pub type_vocab_size: u32,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Dropout behind embeddings and projections; active only when a job asks for base-model dropout.
    pub hidden_dropout: f64,
    /// Dropout on attention probabilities, likewise; the default of AdapterFusion's dropout.
    pub attention_dropout: f64,
    /// Dropout of heads where the model names one; see [`Self::head_dropout`].
    pub classifier_dropout: Option<f64>,
    /// Id of the padding token.
    pub pad_token_id: i64,
    /// Standard deviation with which the model's own new weights start; heads use it.
    pub initializer_range: f64,
    /// Prefix of tensor names in models with heads: `bert` or `roberta`.
    pub prefix: &'static str,
    /// `model_type` in Hugging Face's and AdapterHub's files.
    pub model_type: &'static str,
    /// The Python class that AdapterHub names in its files.
    pub model_class: &'static str,
}

/// One tensor of a trunk.
pub(crate) struct NeededTensor {
    /// Name without base prefix.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// The pooler is optional: only heads that ask for it read it.
    pub(crate) optional: bool,
}

impl TrunkDescription {
    /// Reads `config.json` of a model folder.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        if !path.is_file() {
            let help = "a base model is a Hugging Face folder with config.json, model.safetensors and tokenizer.json";
            return Err(ModelError::MissingFile { folder: folder.to_owned(), wanted: "config.json".into(), help });
        }
        let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Reads the text of a `config.json`; `file` stands in messages.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, ModelError> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| ModelError::Json { file: file.to_owned(), error })?;
        let config = Config { value: &value, file };
        let family = config.family()?;
        config.refuse_variants()?;
        let (prefix, model_class, pad) = match family {
            Family::Bert => ("bert", "BertAdapterModel", 0),
            Family::Roberta => ("roberta", "RobertaAdapterModel", 1),
        };
        let description = Self {
            family,
            hidden_size: config.size("hidden_size")?,
            layers: config.size("num_hidden_layers")?,
            attention_heads: config.size("num_attention_heads")?,
            intermediate_size: config.size("intermediate_size")?,
            vocab_size: config.size("vocab_size")?,
            max_positions: config.size("max_position_embeddings")?,
            type_vocab_size: config.size("type_vocab_size")?,
            layer_norm_eps: config.number("layer_norm_eps", 0.0..1.0)?,
            hidden_act: config.activation()?,
            hidden_dropout: config.number("hidden_dropout_prob", 0.0..1.0)?,
            attention_dropout: config.number("attention_probs_dropout_prob", 0.0..1.0)?,
            classifier_dropout: config.optional_number("classifier_dropout", 0.0..1.0)?,
            pad_token_id: config.pad_token_id(pad)?,
            initializer_range: config.optional_number("initializer_range", 0.0..10.0)?.unwrap_or(0.02),
            prefix,
            model_type: prefix,
            model_class,
        };
        description.check(&config)?;
        Ok(description)
    }

    fn check(&self, config: &Config) -> Result<(), ModelError> {
        if !self.hidden_size.is_multiple_of(self.attention_heads) {
            let allowed = format!("it must divide hidden_size {}", self.hidden_size);
            return Err(config.value_error("num_attention_heads", allowed));
        }
        if self.pad_token_id >= i64::from(self.vocab_size) {
            return Err(config.value_error("pad_token_id", format!("it must be below vocab_size {}", self.vocab_size)));
        }
        if self.max_tokens() < 2 {
            let allowed = "it must leave room for at least 2 tokens behind the padding position".to_owned();
            return Err(config.value_error("max_position_embeddings", allowed));
        }
        Ok(())
    }

    /// The position id of a sequence's first token: 0 for BERT, `pad_token_id + 1` for RoBERTa.
    pub fn first_position(&self) -> u32 {
        match self.family {
            Family::Bert => 0,
            Family::Roberta => u32::try_from(self.pad_token_id + 1).unwrap_or(u32::MAX),
        }
    }

    /// The longest sequence, in tokens, that the position table serves.
    pub fn max_tokens(&self) -> u32 {
        self.max_positions.saturating_sub(self.first_position())
    }

    /// Width of one attention head.
    pub fn head_width(&self) -> u32 {
        self.hidden_size / self.attention_heads
    }

    /// Dropout of a head that names none.
    pub fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout)
    }

    /// All tensors of the trunk, named without base prefix, in the order of computation; the pooler comes last and is
    /// optional.
    pub(crate) fn needed_tensors(&self) -> Vec<NeededTensor> {
        let (hidden, inner) = (self.hidden_size as usize, self.intermediate_size as usize);
        let mut needed = Vec::new();
        let mut push = |name: String, shape: Vec<usize>| needed.push(NeededTensor { name, shape, optional: false });
        for (table, rows) in
            [("word", self.vocab_size), ("position", self.max_positions), ("token_type", self.type_vocab_size)]
        {
            push(format!("embeddings.{table}_embeddings.weight"), vec![rows as usize, hidden]);
        }
        let norm = |push: &mut dyn FnMut(String, Vec<usize>), at: &str| {
            push(format!("{at}.LayerNorm.weight"), vec![hidden]);
            push(format!("{at}.LayerNorm.bias"), vec![hidden]);
        };
        let linear = |push: &mut dyn FnMut(String, Vec<usize>), at: &str, outputs, inputs| {
            push(format!("{at}.weight"), vec![outputs, inputs]);
            push(format!("{at}.bias"), vec![outputs]);
        };
        norm(&mut push, "embeddings");
        for layer in 0..self.layers {
            let layer = format!("encoder.layer.{layer}");
            for matrix in ["query", "key", "value"] {
                linear(&mut push, &format!("{layer}.attention.self.{matrix}"), hidden, hidden);
            }
            linear(&mut push, &format!("{layer}.attention.output.dense"), hidden, hidden);
            norm(&mut push, &format!("{layer}.attention.output"));
            linear(&mut push, &format!("{layer}.intermediate.dense"), inner, hidden);
            linear(&mut push, &format!("{layer}.output.dense"), hidden, inner);
            norm(&mut push, &format!("{layer}.output"));
        }
        linear(&mut push, "pooler.dense", hidden, hidden);
        for tensor in needed.iter_mut().rev().take(2) {
            tensor.optional = true;
        }
        needed
    }
}

/// A `config.json` with errors that name file and key.
struct Config<'a> {
    value: &'a Value,
    file: &'a str,
}

impl Config<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn value_error(&self, key: &str, allowed: String) -> ModelError {
        let found = self.value.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        ModelError::Value { file: self.file.to_owned(), key: key.to_owned(), found, allowed }
    }

    fn missing(&self, key: &str) -> ModelError {
        let help = "a BERT or RoBERTa config.json from Hugging Face has it";
        ModelError::MissingKey { file: self.file.to_owned(), key: key.to_owned(), help }
    }

    fn family(&self) -> Result<Family, ModelError> {
        match self.get("model_type").ok_or_else(|| self.missing("model_type"))?.as_str() {
            Some("bert") => Ok(Family::Bert),
            Some("roberta") => Ok(Family::Roberta),
            _ => Err(self.value_error("model_type", "supported architectures are \"bert\" and \"roberta\"".into())),
        }
    }

    /// Variants of the two architectures whose arithmetic is another one.
    fn refuse_variants(&self) -> Result<(), ModelError> {
        if self.get("position_embedding_type").is_some_and(|kind| kind != "absolute") {
            let allowed = "only \"absolute\" positions are implemented; choose a base model with them".to_owned();
            return Err(self.value_error("position_embedding_type", allowed));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if self.get(key).is_some_and(|flag| flag != false) {
                return Err(self.value_error(key, "only encoders are implemented; it must be false".into()));
            }
        }
        Ok(())
    }

    fn size(&self, key: &str) -> Result<u32, ModelError> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let size = value.as_u64().and_then(|size| u32::try_from(size).ok()).filter(|size| (1..=1 << 24).contains(size));
        size.ok_or_else(|| self.value_error(key, format!("a whole number from 1 to {} is needed", 1 << 24)))
    }

    fn number(&self, key: &str, range: std::ops::Range<f64>) -> Result<f64, ModelError> {
        self.optional_number(key, range)?.ok_or_else(|| self.missing(key))
    }

    fn optional_number(&self, key: &str, range: std::ops::Range<f64>) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| range.contains(number));
        let allowed = || format!("a number from {} to below {} is needed", range.start, range.end);
        number.map(Some).ok_or_else(|| self.value_error(key, allowed()))
    }

    fn pad_token_id(&self, default: i64) -> Result<i64, ModelError> {
        let Some(value) = self.get("pad_token_id") else { return Ok(default) };
        let id = value.as_i64().filter(|id| *id >= 0);
        id.ok_or_else(|| self.value_error("pad_token_id", "a whole number from 0 is needed".into()))
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        Ok(match self.get("hidden_act").ok_or_else(|| self.missing("hidden_act"))?.as_str() {
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluNew,
            Some("relu") => Activation::Relu,
            Some("silu" | "swish") => Activation::Silu,
            Some("tanh") => Activation::Tanh,
            _ => {
                let allowed = "implemented are \"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\", \"silu\", \
                               \"swish\" and \"tanh\"";
                return Err(self.value_error("hidden_act", allowed.to_owned()));
            }
        })
    }
}
