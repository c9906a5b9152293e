//! What Graftwork knows of models without libtorch: trunk descriptions, names and shapes of adapter tensors, and the
//! files of AdapterHub.
//!
//! This crate reads and writes bytes; it must never link libtorch and never execute anything that a file contains.
//! Whatever it writes is a function of its arguments alone (no clock, no random order), because published bytes must
//! be equal on every machine (invariant 5). The trunk's files are opened read-only (invariant 1).
//!
//! * [`TrunkDescription`], [`BaseModel`], [`MappedWeights`]: the frozen transformer.
//! * [`adapter_shapes`], [`fusion_shapes`], [`head_shapes`], [`rename()`], [`Footprint`]: what training makes.
//! * [`safetensors`] and [`torch_file`]: the two weight formats.
//! * [`hub`]: AdapterHub's folders.

mod base;
mod error;
mod footprint;
pub mod hub;
mod names;
mod pickle;
mod portable;
mod python_json;
mod rename;
pub mod safetensors;
mod tensor;
pub mod torch_file;
mod trunk;
mod weights;

pub use base::BaseModel;
pub use error::{FormatError, ModelError};
pub use footprint::Footprint;
pub use names::{adapter_shapes, fusion_shapes, head_shapes, norm_alias};
pub use portable::portable_order;
pub use rename::{rename, rename_all};
pub use tensor::{Dtype, HostTensor, Shape, Tensors, check_tensors, parameter_count};
pub use trunk::{Activation, Family, TrunkDescription};
pub use weights::{MappedWeights, TrunkTensor};
