//! The trunk's tensors inside their files, mapped read-only.
//!
//! A [`TrunkTensor`] says where a tensor's bytes lie; [`MappedWeights`] maps the files, so that processes on one
//! machine share the pages of an fp32 trunk. Nothing here writes (invariant 1).

use std::{fs::File, ops::Range, path::Path};

use memmap2::{Mmap, UncheckedAdvice};

use crate::{
    error::{FormatError, ModelError},
    tensor::{Dtype, HostTensor, to_host},
};

/// Where one tensor of the trunk lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TrunkTensor {
    /// Canonical name: without base prefix, such as `encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Index of the file in [`crate::BaseModel::weights`].
    pub file: usize,
    /// Bytes in the file.
    pub range: Range<usize>,
    /// Element strides where the tensor is not in row-major order.
    pub(crate) strides: Option<Vec<usize>>,
}

impl TrunkTensor {
    /// Whether the bytes in the file are the fp32 values in row-major order at an address that fp32 may be read from,
    /// so that they can be used in place.
    pub fn usable_in_place(&self) -> bool {
        self.dtype == Dtype::F32 && self.strides.is_none() && self.range.start.is_multiple_of(4)
    }
}

/// The weight files of a base model in memory, read-only and shared with other processes.
pub struct MappedWeights {
    files: Vec<Mapped>,
}

/// One mapped file; `Mmap` itself frees the mapping.
pub(crate) struct Mapped {
    pub(crate) name: String,
    pub(crate) bytes: Mmap,
}

impl MappedWeights {
    pub(crate) fn new(files: Vec<Mapped>) -> Self {
        Self { files }
    }

    /// The bytes of a tensor as they lie in the file, little-endian.
    ///
    /// # Panics
    /// When the tensor is of another base model.
    pub fn bytes(&self, tensor: &TrunkTensor) -> &[u8] {
        &self.files[tensor.file].bytes[tensor.range.clone()]
    }

    /// Gives the files' pages back to the system, which reads them again when somebody asks: after a pass over all that
    /// is not needed soon.
    pub fn leave_pages(&self) {
        for file in &self.files {
            // SAFETY: the mapping is of a file and read-only, so its pages come back with the same bytes.
            let left = unsafe { file.bytes.unchecked_advise(UncheckedAdvice::DontNeed) };
            // Advice that is not taken costs memory and nothing else.
            left.ok();
        }
    }

    /// A tensor's values as fp32 in row-major order, whatever its type and order in the file.
    pub fn values(&self, tensor: &TrunkTensor) -> Result<HostTensor, ModelError> {
        let file = &self.files[tensor.file];
        let bytes = self.bytes(tensor);
        let values = match &tensor.strides {
            None => to_host(&tensor.name, tensor.dtype, &tensor.shape, bytes),
            Some(strides) => {
                let dense = gather(bytes, tensor.dtype.size(), &tensor.shape, strides);
                dense
                    .map_err(|problem| FormatError::Tensor { tensor: tensor.name.clone(), problem })
                    .and_then(|dense| to_host(&tensor.name, tensor.dtype, &tensor.shape, &dense))
            }
        };
        values.map_err(|source| source.of(file.name.as_str()))
    }
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        // SAFETY: the mapping is read-only and private to readers of this type. Another program that shortens the
        // file meanwhile would end this process by SIGBUS, as it would with any memory-mapped library; base models
        // are kept under their digest and replaced by renaming, never rewritten in place.
        let bytes = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
        Ok(Self { name: path.display().to_string(), bytes })
    }
}

/// Elements of a strided tensor in row-major order. `bytes` starts at the tensor's first element.
pub(crate) fn gather(bytes: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Result<Vec<u8>, String> {
    let count = crate::tensor::elements(shape).ok_or("has more elements than fit in memory")?;
    // A stride of 0 can announce far more elements than there are bytes; state dictionaries never repeat elements.
    if count.saturating_mul(size) > bytes.len() {
        return Err(format!("announces {count} elements of {size} bytes in {} bytes", bytes.len()));
    }
    let mut dense = Vec::with_capacity(count * size);
    let mut index = vec![0_usize; shape.len()];
    for _ in 0..count {
        let offset = index.iter().zip(strides).try_fold(0_usize, |sum, (i, s)| sum.checked_add(i.checked_mul(*s)?));
        let start = offset.and_then(|offset| offset.checked_mul(size)).ok_or("has strides beyond memory")?;
        let element = start.checked_add(size).and_then(|end| bytes.get(start..end));
        dense.extend_from_slice(element.ok_or("lies outside of its storage")?);
        for (position, limit) in index.iter_mut().zip(shape).rev() {
            *position += 1;
            if *position < *limit {
                break;
            }
            *position = 0;
        }
    }
    Ok(dense)
}
