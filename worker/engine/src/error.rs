//! What can go wrong in the engine. Every variant is a mistake in what was handed in; libtorch itself is trusted to
//! compute once names, shapes and ranges are checked here.

use graftwork_model::ModelError;
use graftwork_shared::composition::CompositionError;

/// Why a network cannot be built or a lane cannot be computed. None of these is helped by trying again.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The base model or an adapter's description is not usable.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The composition breaks the table of nestings.
    #[error(transparent)]
    Composition(#[from] CompositionError),
    /// A tensor that the network needs was not handed in.
    #[error("tensor {name} is missing; {present} tensors were given")]
    MissingTensor {
        /// Its full state-dict name.
        name: String,
        /// How many were given.
        present: usize,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Its full state-dict name.
        name: String,
        /// The given shape.
        found: Vec<usize>,
        /// The shape by configuration.
        expected: Vec<usize>,
    },
    /// Adapters, heads and composition do not fit together.
    #[error("{0}")]
    Setup(String),
    /// A lane's rows do not fit the model or the composition.
    #[error("{0}")]
    Rows(String),
}
