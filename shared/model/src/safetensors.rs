//! The safetensors format, on bytes and on files.
//!
//! Reading checks the whole header before a tensor is touched and says how many bytes are missing. Writing gives equal
//! bytes for equal tensors: names in order, no `__metadata__` unless asked for, and its keys in order too.

use std::{collections::BTreeMap, path::Path};

use ::safetensors::{Dtype as FileDtype, SafeTensorError, SafeTensors, tensor::Metadata};

use crate::{
    error::{FormatError, ModelError},
    tensor::{Dtype, Place, Tensors, to_host},
};

/// A tensor of any type, its bytes as they lie in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor<'a> {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Little-endian elements in row-major order.
    pub bytes: &'a [u8],
}

/// All tensors as fp32.
///
/// # Errors
/// When the bytes are damaged or a tensor is not of a float type.
pub fn read(bytes: &[u8]) -> Result<Tensors, FormatError> {
    let raw = read_raw(bytes)?;
    raw.into_iter().map(|(name, raw)| Ok((name.clone(), to_host(&name, raw.dtype, &raw.shape, raw.bytes)?))).collect()
}

/// All tensors of a file as fp32.
pub fn read_file(path: &Path) -> Result<Tensors, ModelError> {
    let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
    read(&bytes).map_err(|source| source.of(path.display().to_string()))
}

/// All tensors in their own types, without a copy.
///
/// # Errors
/// When the bytes are damaged or a tensor is of a type that [`Dtype`] does not have.
pub fn read_raw(bytes: &[u8]) -> Result<BTreeMap<String, RawTensor<'_>>, FormatError> {
    let places = header(bytes)?.into_iter().map(|(name, place)| {
        let Some(dtype) = place.dtype else {
            let allowed = "F32, F16, BF16, F64 and I64";
            return Err(FormatError::Dtype { tensor: name, found: place.dtype_name, allowed });
        };
        Ok((name, RawTensor { dtype, shape: place.shape, bytes: &bytes[place.range] }))
    });
    places.collect()
}

/// The `__metadata__` of a file; empty when it has none.
///
/// # Errors
/// When the bytes are damaged.
pub fn metadata(bytes: &[u8]) -> Result<BTreeMap<String, String>, FormatError> {
    let (_, header) = parse(bytes)?;
    Ok(header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Where every tensor lies.
pub(crate) fn header(bytes: &[u8]) -> Result<Vec<(String, Place)>, FormatError> {
    let (data, metadata) = parse(bytes)?;
    let place = |(name, info): (String, &::safetensors::tensor::TensorInfo)| {
        let range = data + info.data_offsets.0..data + info.data_offsets.1;
        let dtype = match info.dtype {
            FileDtype::F32 => Some(Dtype::F32),
            FileDtype::F16 => Some(Dtype::F16),
            FileDtype::BF16 => Some(Dtype::BF16),
            FileDtype::F64 => Some(Dtype::F64),
            FileDtype::I64 => Some(Dtype::I64),
            _ => None,
        };
        let dtype_name = format!("{:?}", info.dtype);
        (name, Place { dtype, dtype_name, shape: info.shape.clone(), range, strides: None })
    };
    let mut places: Vec<_> = metadata.tensors().into_iter().map(place).collect();
    places.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(places)
}

/// The position of the data and the header.
fn parse(bytes: &[u8]) -> Result<(usize, Metadata), FormatError> {
    let found = bytes.len() as u64;
    let truncated = |what: &str, needed: u64| FormatError::Truncated { what: what.to_owned(), needed, found };
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(truncated("the header's length", 8));
    };
    let length = u64::from_le_bytes(*length);
    if length > 100_000_000 {
        return Err(FormatError::Header(format!("it announces {length} bytes; 100000000 are the format's limit")));
    }
    let data = length + 8;
    if data > found {
        return Err(truncated("the header", data));
    }
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            incomplete(bytes, data).unwrap_or_else(|| truncated("the data", data))
        }
        error => FormatError::Header(error.to_string()),
    })?;
    let data = usize::try_from(data).map_err(|error| FormatError::Header(error.to_string()))?;
    Ok((data, metadata))
}

/// How many bytes are missing or too many, by the header's own account.
fn incomplete(bytes: &[u8], data: u64) -> Option<FormatError> {
    let header = bytes.get(8..usize::try_from(data).ok()?)?;
    let metadata: Metadata = serde_json::from_slice(header).ok()?;
    let (needed, found) = (data + metadata.data_len() as u64, bytes.len() as u64);
    Some(match found.checked_sub(needed) {
        Some(extra) => FormatError::Trailing { extra },
        None => FormatError::Truncated { what: "the file with its tensors".to_owned(), needed, found },
    })
}

/// The bytes of a file with these tensors, and with `metadata` where it is not empty.
///
/// # Panics
/// When a tensor's values do not fill its shape.
pub fn write(tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut end = 0;
    for (name, tensor) in tensors {
        assert_eq!(crate::tensor::elements(&tensor.shape), Some(tensor.values.len()), "{name} fills its shape");
        let start = end;
        end += tensor.values.len() * 4;
        let entry = serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).expect("names and numbers can be written as JSON");
    // The format asks for data at a multiple of 8, padded with spaces.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + header.len() + end);
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    for tensor in tensors.values() {
        extend_with_values(&mut bytes, &tensor.values);
    }
    bytes
}

/// Writes a file as [`write()`] does, without durability or atomicity: for local tools. What is published goes through
/// the store.
pub fn write_file(path: &Path, tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<(), ModelError> {
    std::fs::write(path, write(tensors, metadata)).map_err(ModelError::io(path))
}

/// Appends fp32 values as little-endian bytes.
pub(crate) fn extend_with_values(bytes: &mut Vec<u8>, values: &[f32]) {
    bytes.reserve(values.len() * 4);
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
}
