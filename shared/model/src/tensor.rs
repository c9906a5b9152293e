//! Tensors in host memory, their types and shapes.
//!
//! Everything that is trained is fp32 here; other types occur in files only and are converted on reading.

use std::collections::BTreeMap;

use crate::error::{FormatError, ModelError};

/// Dense fp32 values in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Sizes of the dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`.
    pub values: Vec<f32>,
}

/// Named tensors, ordered by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// A tensor's full name and its shape.
pub type Shape = (String, Vec<usize>);

impl HostTensor {
    /// A tensor, or `None` when the number of values is not the product of the shape.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Option<Self> {
        (elements(&shape)? == values.len()).then_some(Self { shape, values })
    }

    /// A tensor of zeros.
    ///
    /// # Panics
    /// When the product of the shape exceeds the address space.
    pub fn zeros(shape: Vec<usize>) -> Self {
        let count = elements(&shape).expect("a shape that fits in memory");
        Self { shape, values: vec![0.0; count] }
    }
}

/// Number of elements of a shape, or `None` beyond the address space.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))
}

/// How many numbers a list of tensors holds.
pub fn parameter_count(shapes: &[Shape]) -> u64 {
    shapes.iter().map(|(_, shape)| shape.iter().map(|size| *size as u64).product::<u64>()).sum()
}

/// Checks that `tensors` are exactly `shapes`: every name present, of the right shape, all values finite, none more.
///
/// `file` and `owner` stand in the message.
pub fn check_tensors(tensors: &Tensors, shapes: &[Shape], file: &str, owner: &str) -> Result<(), ModelError> {
    let file = || file.to_owned();
    for (name, wanted) in shapes {
        let Some(tensor) = tensors.get(name) else {
            let of = format!("of shape {wanted:?}, needed by {owner}");
            return Err(ModelError::MissingTensor { file: file(), tensor: name.clone(), of });
        };
        if tensor.shape != *wanted {
            let (found, wanted) = (tensor.shape.clone(), wanted.clone());
            return Err(ModelError::Shape { file: file(), tensor: name.clone(), found, wanted });
        }
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            let problem = format!("holds {value}, only finite numbers are allowed");
            return Err(ModelError::Tensor { file: file(), tensor: name.clone(), problem });
        }
    }
    if tensors.len() > shapes.len() {
        let unknown = tensors.keys().find(|name| !shapes.iter().any(|(known, _)| known == *name));
        if let Some(name) = unknown {
            return Err(ModelError::UnknownTensor { file: file(), tensor: name.clone(), owner: owner.to_owned() });
        }
    }
    Ok(())
}

/// Types that occur in weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 16-bit brain float.
    BF16,
    /// 16-bit float.
    F16,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// 64-bit signed integer.
    I64,
}

/// Where a tensor lies inside a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// `None` for a type that is not read.
    pub(crate) dtype: Option<Dtype>,
    /// The file's own word for the type.
    pub(crate) dtype_name: String,
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file from the tensor's first element on; inside the file.
    pub(crate) range: std::ops::Range<usize>,
    /// Element strides where the tensor is not in row-major order.
    pub(crate) strides: Option<Vec<usize>>,
}

impl Dtype {
    /// Whether it can be converted to fp32.
    pub fn is_float(self) -> bool {
        self != Self::I64
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::BF16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// The name that safetensors uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::BF16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::I64 => "I64",
        }
    }

    /// Little-endian bytes of a float type as fp32; `None` for integers or a partial element.
    pub fn to_f32(self, bytes: &[u8]) -> Option<Vec<f32>> {
        if !bytes.len().is_multiple_of(self.size()) {
            return None;
        }
        Some(match self {
            Self::F32 => words::<4>(bytes).map(f32::from_le_bytes).collect(),
            Self::BF16 => words::<2>(bytes).map(|w| f32::from_bits(u32::from(u16::from_le_bytes(w)) << 16)).collect(),
            Self::F16 => words::<2>(bytes).map(|w| half_to_f32(u16::from_le_bytes(w))).collect(),
            #[expect(clippy::cast_possible_truncation, reason = "weights are fp32 in training; rounding is meant")]
            Self::F64 => words::<8>(bytes).map(|w| f64::from_le_bytes(w) as f32).collect(),
            Self::I64 => return None,
        })
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks_exact gives chunks of N bytes"))
}

/// An IEEE 754 half-precision number as fp32: every half is exact in fp32.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = ((bits >> 10) & 0x1f, f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2.0_f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2.0_f32.powi(i32::from(exponent) - 15),
    }
}

/// Float bytes of a named tensor as fp32, with an error that names it.
pub(crate) fn to_host(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<HostTensor, FormatError> {
    let values = dtype.to_f32(bytes).ok_or_else(|| FormatError::Dtype {
        tensor: name.to_owned(),
        found: dtype.name().to_owned(),
        allowed: "F32, F16, BF16 and F64",
    })?;
    HostTensor::new(shape.to_vec(), values).ok_or_else(|| FormatError::Tensor {
        tensor: name.to_owned(),
        problem: format!("{} bytes do not fill shape {shape:?}", bytes.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_brain_floats_become_the_same_numbers() {
        let half = |bits: u16| Dtype::F16.to_f32(&bits.to_le_bytes()).unwrap()[0];
        assert_eq!((half(0x3c00), half(0xc000), half(0x7bff), half(0x0001)), (1.0, -2.0, 65504.0, 2.0_f32.powi(-24)));
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
        assert_eq!(Dtype::BF16.to_f32(&0xc049_u16.to_le_bytes()).unwrap(), [-3.140_625]);
        assert_eq!(Dtype::F64.to_f32(&0.1_f64.to_le_bytes()).unwrap(), [0.1]);
        assert_eq!(Dtype::F32.to_f32(&[0; 7]), None);
        assert_eq!(Dtype::I64.to_f32(&[0; 8]), None);
    }

    #[test]
    fn tensors_must_be_exactly_those_asked_for() {
        let shapes = vec![("a".to_owned(), vec![2]), ("b".to_owned(), vec![1, 3])];
        let mut tensors = Tensors::from([("a".into(), HostTensor::zeros(vec![2]))]);
        let check =
            |tensors: &Tensors| check_tensors(tensors, &shapes, "x.bin", "head \"h\"").map_err(|e| e.to_string());
        assert_eq!(check(&tensors).unwrap_err(), "x.bin has no tensor \"b\" of shape [1, 3], needed by head \"h\"");
        tensors.insert("b".into(), HostTensor::zeros(vec![3, 1]));
        assert!(check(&tensors).unwrap_err().contains("has shape [3, 1], the configuration asks for [1, 3]"));
        tensors.insert("b".into(), HostTensor::zeros(vec![1, 3]));
        assert_eq!((check(&tensors), parameter_count(&shapes)), (Ok(()), 5));
        tensors.insert("c".into(), HostTensor::zeros(vec![1]));
        assert!(check(&tensors).unwrap_err().contains("\"c\", which head \"h\" has no place for"));
        tensors.remove("c");
        tensors.get_mut("a").unwrap().values[1] = f32::NAN;
        assert!(check(&tensors).unwrap_err().contains("holds NaN"));
    }
}
