//! The frozen transformer's weights on a device.
//!
//! On the CPU the tensors lie in the mapped weight file itself, and packed ones in another, so that all threads and
//! processes of a machine share their pages. Nothing ever writes to them (invariant 1).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use graftwork_model::{BaseModel, Dtype, MappedWeights, ModelError, TrunkDescription, TrunkTensor};
use graftwork_shared::{digest::Digest, training::Precision};
use tch::{Device, Kind, Tensor};

use crate::{
    EngineError, InputError, TextEncoder,
    block::{LayerNorm, Linear},
    input::Rules,
    packed::PackedFile,
    shelf::Shelves,
    spans::signed,
};

/// A frozen BERT or RoBERTa. `Send`, not `Sync`: a thread takes its own [`Trunk::share`].
pub struct Trunk {
    description: Arc<TrunkDescription>,
    tokenizer: Arc<PathBuf>,
    /// Opened once for each limit of length.
    rules: Arc<Mutex<BTreeMap<u32, Arc<Rules>>>>,
    /// The file behind the tensors; must outlive every one of them.
    mapped: Arc<MappedWeights>,
    device: Device,
    precision: Precision,
    /// The layers once more, for products in other numbers than fp32.
    converted: Arc<Mutex<BTreeMap<Precision, Vec<LayerWeights>>>>,
    pub(crate) embeddings: Embeddings,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) pooler: Option<Linear>,
}

/// Tables and layer norm in front of the first layer.
pub(crate) struct Embeddings {
    pub(crate) word_vd: Tensor,
    pub(crate) position_pd: Tensor,
    pub(crate) segment_sd: Tensor,
    pub(crate) norm: LayerNorm,
}

/// One layer's frozen blocks.
pub(crate) struct LayerWeights {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) attention_norm: LayerNorm,
    pub(crate) intermediate: Linear,
    pub(crate) output: Linear,
    pub(crate) output_norm: LayerNorm,
}

impl Trunk {
    /// Maps a base model's weights. fp32 matrices are used where they lie; vectors and other types are copied into memory.
    pub fn open(base: &BaseModel, device: Device) -> Result<Self, EngineError> {
        let mapped = Arc::new(base.map()?);
        let reader = Reader { base, mapped: &mapped, device };
        let norm = |at: &str| reader.norm(at, base.description.layer_norm_eps);
        let table = |name: &str| reader.tensor(&format!("embeddings.{name}_embeddings.weight"));
        let embeddings = Embeddings {
            word_vd: table("word")?,
            position_pd: table("position")?,
            segment_sd: table("token_type")?,
            norm: norm("embeddings.LayerNorm")?,
        };
        let layer = |index: u32| {
            let at = |place: &str| format!("encoder.layer.{index}.{place}");
            Ok(LayerWeights {
                query: reader.linear(&at("attention.self.query"))?,
                key: reader.linear(&at("attention.self.key"))?,
                value: reader.linear(&at("attention.self.value"))?,
                attention_output: reader.linear(&at("attention.output.dense"))?,
                attention_norm: norm(&at("attention.output.LayerNorm"))?,
                intermediate: reader.linear(&at("intermediate.dense"))?,
                output: reader.linear(&at("output.dense"))?,
                output_norm: norm(&at("output.LayerNorm"))?,
            })
        };
        let layers = (0..base.description.layers).map(layer).collect::<Result<_, EngineError>>()?;
        let pooler = if base.has_pooler() { Some(reader.linear("pooler.dense")?) } else { None };
        let description = Arc::new(base.description.clone());
        let tokenizer = Arc::new(base.tokenizer.clone());
        let (rules, converted, precision) = (Arc::default(), Arc::default(), Precision::Fp32);
        Ok(Self { description, tokenizer, rules, mapped, device, precision, converted, embeddings, layers, pooler })
    }

    /// Reads packed weights from a file that all processes of the machine share, and writes it first where it is not there
    /// yet. `digest` is that of the base model. Changes no byte of a result; without effect on accelerators.
    pub fn packed_once(self, shelves: &Arc<Shelves>, digest: &Digest) -> Self {
        let linears: Vec<&Linear> = self.layers.iter().flat_map(LayerWeights::linears).collect();
        let matrices: Option<Vec<_>> = linears.iter().map(|linear| linear.unpacked()).collect();
        let matrices: Vec<_> = matrices.into_iter().flatten().flatten().collect();
        if let Some(file) = PackedFile::of(shelves, digest, &matrices).filter(|_| !matrices.is_empty()) {
            let file = Arc::new(file);
            linears.iter().enumerate().for_each(|(number, linear)| linear.packed_in(&file, 2 * number));
        }
        drop(matrices);
        // Where the file was written just now, all weights were read, and few are again.
        self.mapped.leave_pages();
        self
    }

    /// The same weights for another thread; costs a few dozen reference counts.
    pub fn share(&self) -> Self {
        let embeddings = Embeddings {
            word_vd: self.embeddings.word_vd.shallow_clone(),
            position_pd: self.embeddings.position_pd.shallow_clone(),
            segment_sd: self.embeddings.segment_sd.shallow_clone(),
            norm: self.embeddings.norm.share(),
        };
        Self {
            description: Arc::clone(&self.description),
            tokenizer: Arc::clone(&self.tokenizer),
            rules: Arc::clone(&self.rules),
            mapped: Arc::clone(&self.mapped),
            device: self.device,
            precision: self.precision,
            converted: Arc::clone(&self.converted),
            embeddings,
            layers: self.layers.iter().map(LayerWeights::share).collect(),
            pooler: self.pooler.as_ref().map(Linear::share),
        }
    }

    /// The same trunk with its layers' products in these numbers, whatever it computed in before. Weights are converted
    /// once for all that share it; what goes in and comes out of a product stays fp32.
    #[must_use]
    pub fn in_precision(&self, precision: Precision) -> Self {
        let mut shared = self.share();
        shared.precision = precision;
        let mut converted = self.converted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.precision == Precision::Fp32 {
            converted.entry(Precision::Fp32).or_insert_with(|| self.layers.iter().map(LayerWeights::share).collect());
        }
        if !converted.contains_key(&precision) {
            let layers =
                converted[&Precision::Fp32].iter().map(|layer| layer.map(|linear| linear.in_precision(precision)));
            let layers = layers.collect();
            converted.insert(precision, layers);
        }
        shared.layers = converted[&precision].iter().map(LayerWeights::share).collect();
        shared
    }

    /// Numbers in which the layers' products are computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sizes and constants of the model.
    pub fn description(&self) -> &TrunkDescription {
        &self.description
    }

    /// The base model's tokenizer for rows of at most so many tokens, special ones included.
    ///
    /// # Errors
    /// As [`TextEncoder::open`].
    pub fn encoder(&self, max_length: u32) -> Result<TextEncoder, InputError> {
        let mut opened = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = match opened.get(&max_length) {
            Some(rules) => Arc::clone(rules),
            None => {
                let rules = Arc::new(Rules::open(&self.tokenizer, max_length, self.description.type_vocab_size)?);
                opened.insert(max_length, Arc::clone(&rules));
                rules
            }
        };
        Ok(TextEncoder::with(rules))
    }

    /// Where the weights lie.
    pub fn device(&self) -> Device {
        self.device
    }
}

impl LayerWeights {
    fn share(&self) -> Self {
        self.map(Linear::share)
    }

    /// The same norms, and what a function makes of each linear layer.
    fn map(&self, of: impl Fn(&Linear) -> Linear) -> Self {
        Self {
            query: of(&self.query),
            key: of(&self.key),
            value: of(&self.value),
            attention_output: of(&self.attention_output),
            attention_norm: self.attention_norm.share(),
            intermediate: of(&self.intermediate),
            output: of(&self.output),
            output_norm: self.output_norm.share(),
        }
    }

    pub(crate) fn linears(&self) -> [&Linear; 6] {
        [&self.query, &self.key, &self.value, &self.attention_output, &self.intermediate, &self.output]
    }
}

struct Reader<'a> {
    base: &'a BaseModel,
    mapped: &'a MappedWeights,
    device: Device,
}

impl Reader<'_> {
    fn linear(&self, at: &str) -> Result<Linear, EngineError> {
        Ok(Linear::new(self.tensor(&format!("{at}.weight"))?, self.tensor(&format!("{at}.bias"))?))
    }

    fn norm(&self, at: &str, eps: f64) -> Result<LayerNorm, EngineError> {
        Ok(LayerNorm {
            weight_d: self.tensor(&format!("{at}.weight"))?,
            bias_d: self.tensor(&format!("{at}.bias"))?,
            eps,
        })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, EngineError> {
        let missing = || EngineError::MissingTensor { name: name.to_owned(), present: self.base.tensors().len() };
        let tensor = self.base.tensor(name).ok_or_else(missing)?;
        let shape: Vec<i64> = tensor.shape.iter().map(|&size| signed(size)).collect();
        // Norms and biases are copied: they lie between the layers' matrices, which nobody reads once they are packed, and a
        // system that keeps files in large pages would keep much of those in memory for them.
        let in_place = tensor.usable_in_place() && shape.len() > 1;
        let on_host = if in_place { self.in_place(tensor, &shape) } else { self.copied(tensor, &shape)? };
        Ok(on_host.to_device(self.device))
    }

    fn in_place(&self, tensor: &TrunkTensor, shape: &[i64]) -> Tensor {
        debug_assert_eq!(tensor.dtype, Dtype::F32);
        let bytes = self.mapped.bytes(tensor);
        // SAFETY: `bytes` holds exactly the tensor's fp32 elements in row-major order at an address that is a
        // multiple of 4 (both checked by `usable_in_place` and by the slice's range). The map is read-only and kept
        // alive by `Trunk::mapped`, and no tensor of a trunk leaves this crate; nothing here writes to a trunk tensor.
        unsafe { Tensor::from_blob(bytes.as_ptr(), shape, &[], Kind::Float, Device::Cpu) }
    }

    fn copied(&self, tensor: &TrunkTensor, shape: &[i64]) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_slice(&self.mapped.values(tensor)?.values).view(shape))
    }
}
