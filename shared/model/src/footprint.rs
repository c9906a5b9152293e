//! How many numbers a stage trains and how much memory they take: what the planner and `explain` show.

use graftwork_shared::{head::Head, recipe::Method, recipe::slot, recipe::trained_slot};

use crate::{
    error::ModelError,
    names::{adapter_shapes, fusion_shapes, head_shapes},
    tensor::parameter_count,
    trunk::TrunkDescription,
};

/// Bytes of fp32 state for each trained number: weight, gradient, two AdamW moments, and the best weights kept.
const BYTES_FOR_EACH_TRAINED: u64 = 5 * 4;

/// Sizes of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Numbers in the frozen trunk, without its pooler.
    pub trunk_parameters: u64,
    /// Numbers that the stage trains: the adapter's or the fusion's, and the head's.
    pub trained_parameters: u64,
    /// Numbers in frozen adapters that a fusion reads.
    pub frozen_parameters: u64,
}

impl Footprint {
    /// Sizes of a stage that trains `method` with `head` on `trunk`.
    pub fn of(method: &Method, head: &Head, trunk: &TrunkDescription) -> Result<Self, ModelError> {
        let name = trained_slot();
        let (trained, frozen) = match method {
            Method::Adapter(config) => (parameter_count(&adapter_shapes(config, trunk, name.as_str())?), 0),
            Method::Fusion { config, adapters } => {
                let configs: Vec<_> = adapters.iter().map(|adapter| &adapter.config).collect();
                let mut frozen = 0;
                for (position, config) in configs.iter().enumerate() {
                    frozen += parameter_count(&adapter_shapes(config, trunk, slot(position).as_str())?);
                }
                (parameter_count(&fusion_shapes(config, &configs, trunk, name.as_str())?), frozen)
            }
        };
        let needed = trunk.needed_tensors().into_iter().filter(|tensor| !tensor.optional || head.use_pooler);
        let needed: Vec<_> = needed.map(|tensor| (tensor.name, tensor.shape)).collect();
        Ok(Self {
            trunk_parameters: parameter_count(&needed),
            trained_parameters: trained + parameter_count(&head_shapes(head, trunk, name.as_str())?),
            frozen_parameters: frozen,
        })
    }

    /// Bytes of the frozen trunk in memory, fp32; processes of one machine share them when the file is fp32.
    pub fn trunk_bytes(&self) -> u64 {
        self.trunk_parameters * 4
    }

    /// Bytes that the stage itself keeps: fp32 weights, gradients, both AdamW moments and the best weights of what it
    /// trains, and the weights of the adapters it reads. Activations come on top and depend on the rows of a lane.
    pub fn stage_bytes(&self) -> u64 {
        self.trained_parameters * BYTES_FOR_EACH_TRAINED + self.frozen_parameters * 4
    }
}
