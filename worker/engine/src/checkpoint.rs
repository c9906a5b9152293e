//! A trainer's whole state as one safetensors file, and back.
//!
//! | tensors | |
//! |---|---|
//! | state-dict names of the layout | trained numbers after the last update |
//! | `adamw.m.*`, `adamw.v.*` | first and second moments |
//! | `best.*` | trained numbers of the best evaluation, where the job keeps them |
//!
//! Everything else is JSON under one key of `__metadata__`. The bytes are a function of the state alone. A file that
//! is damaged, or was written for another recipe or layout, is refused with the tensor or field that does not fit.

use std::collections::BTreeMap;

use graftwork_model::{FormatError, HostTensor, Tensors, safetensors};
use graftwork_shared::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::trainer::{Best, Moments, Progress, Trainer};

const KEY: &str = "graftwork.checkpoint";
const FIRST_MOMENTS: &str = "adamw.m.";
const SECOND_MOMENTS: &str = "adamw.v.";
const BEST: &str = "best.";

/// Version of this layout.
const VERSION: u32 = 1;

/// Why bytes are not a checkpoint of this training.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not a readable safetensors file.
    #[error("the checkpoint is not a readable safetensors file: {0}")]
    Format(FormatError),
    /// The metadata is not there or not what this version writes.
    #[error("the checkpoint's metadata is not usable: {0}")]
    State(String),
    /// A tensor is missing or has another shape.
    #[error("the checkpoint's tensor {name}: {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// It belongs to another recipe.
    #[error("the checkpoint belongs to recipe {found}, not to {expected}")]
    Recipe {
        /// The recipe of the assignment.
        expected: Digest,
        /// The recipe of the file.
        found: Digest,
    },
}

impl From<FormatError> for CheckpointError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    recipe: Digest,
    best_step: Option<u64>,
    progress: Progress,
}

impl Trainer {
    /// The state as a file, of which no byte depends on a clock.
    pub fn checkpoint(&self, recipe: Digest) -> Result<Vec<u8>, CheckpointError> {
        let best_step = self.best.as_ref().map(|best| best.step);
        let state = State { version: VERSION, recipe, best_step, progress: self.progress.clone() };
        let state = serde_json::to_string(&state).map_err(|error| CheckpointError::State(error.to_string()))?;
        let groups = [
            ("", Some(&self.parameters)),
            (FIRST_MOMENTS, Some(&self.moments.first)),
            (SECOND_MOMENTS, Some(&self.moments.second)),
            (BEST, self.best.as_ref().map(|best| &best.parameters)),
        ];
        let mut tensors = Tensors::new();
        for (prefix, values) in groups {
            tensors.extend(values.into_iter().flat_map(|values| self.name_tensors(prefix, values)));
        }
        Ok(safetensors::write(&tensors, &BTreeMap::from([(KEY.to_owned(), state)])))
    }

    /// The weights to publish, under their own names.
    pub fn kept_tensors(&self) -> Tensors {
        self.name_tensors("", self.kept_parameters()).collect()
    }

    fn name_tensors(&self, prefix: &str, values: &[f32]) -> impl Iterator<Item = (String, HostTensor)> {
        self.layout.tensors.iter().map(move |tensor| {
            let values = values[tensor.offset..tensor.offset + tensor.elements()].to_vec();
            (format!("{prefix}{}", tensor.name), HostTensor { shape: tensor.shape.clone(), values })
        })
    }

    /// Takes up the state of a checkpoint of this recipe, in a trainer just made for it. After an error the trainer is as
    /// it was.
    pub fn resume(&mut self, bytes: &[u8], recipe: Digest) -> Result<(), CheckpointError> {
        let mut metadata = safetensors::metadata(bytes)?;
        let text = metadata.remove(KEY).ok_or_else(|| CheckpointError::State(format!("there is no {KEY:?}")))?;
        let state: State = serde_json::from_str(&text).map_err(|error| CheckpointError::State(error.to_string()))?;
        if state.version != VERSION {
            let message = format!("it has version {}, this program reads version {VERSION}", state.version);
            return Err(CheckpointError::State(message));
        }
        if state.recipe != recipe {
            return Err(CheckpointError::Recipe { expected: recipe, found: state.recipe });
        }
        let mut file = safetensors::read(bytes)?;
        let parameters = self.take_group(&mut file, "")?;
        let moments = Moments {
            first: self.take_group(&mut file, FIRST_MOMENTS)?,
            second: self.take_group(&mut file, SECOND_MOMENTS)?,
        };
        let best = match state.best_step {
            Some(step) => Some(Best { step, parameters: self.take_group(&mut file, BEST)? }),
            None => None,
        };
        (self.parameters, self.moments, self.best, self.progress) = (parameters, moments, best, state.progress);
        Ok(())
    }

    fn take_group(&self, file: &mut Tensors, prefix: &str) -> Result<Vec<f32>, CheckpointError> {
        let mut values = Vec::with_capacity(self.layout.len);
        for tensor in &self.layout.tensors {
            let name = format!("{prefix}{}", tensor.name);
            let Some(found) = file.remove(&name) else {
                return Err(CheckpointError::Tensor { name, what: "is missing".to_owned() });
            };
            if found.shape != tensor.shape {
                let what = format!("has shape {:?}, expected {:?}", found.shape, tensor.shape);
                return Err(CheckpointError::Tensor { name, what });
            }
            values.extend(found.values);
        }
        Ok(values)
    }
}
