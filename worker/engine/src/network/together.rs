//! The lanes of an update together: on an accelerator all are queued before the first of their numbers is read.
//!
//! Reading makes the host wait for all that the device was asked for. So losses and gradients of all lanes are read at once,
//! and what the host can do for the next update it does in front of that wait: its numbers are copied while the device
//! computes. On the processor nothing is waited for, and lanes are computed one after the other. Either way each has the
//! bytes that it has alone.

use graftwork_shared::training::Precision;

use super::{Input, Network, pass, scaled};
use crate::{
    EngineError,
    parameters::Unread,
    rows::{Lane, LaneOptions, LaneOutput, Targets},
};

/// Bytes of gradients that lie on an accelerator until they are read. More lanes than fit wait one after the other, so that
/// accumulation over many batches takes no more memory there.
const UNREAD_BYTES: usize = 1 << 30;

/// A lane that was checked, as a network computes it; on an accelerator its numbers are there, or on their way.
pub struct StagedLane {
    input: Input,
    targets: Targets,
}

impl Network {
    /// Checks a lane, and on an accelerator sends its tokens and targets there, without waiting for it.
    ///
    /// # Errors
    /// When rows, targets and lengths do not fit each other, the trunk or the composition.
    pub fn stage(&self, lane: &Lane) -> Result<StagedLane, EngineError> {
        let mut input = self.checked(lane)?;
        if self.on_accelerator() {
            tch::no_grad(|| input.place(&lane.targets, self.trunk.device()));
        }
        Ok(StagedLane { input, targets: lane.targets.clone() })
    }

    /// Loss and gradient of each of these lanes, as [`Self::lane`] gives them. An accelerator is waited for once for all of
    /// them, unless their gradients take more than 1 GiB or one in fp16 overflows. `before_wait` is called once: on
    /// an accelerator when it has been asked for all that comes in front of the first wait.
    pub fn lanes(&self, lanes: &[StagedLane], options: &LaneOptions, before_wait: impl FnOnce()) -> Vec<LaneOutput> {
        let _guard = self.flat_lock.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        tch::no_grad(|| {
            if self.on_accelerator() {
                return self.queued(lanes, options, before_wait);
            }
            before_wait();
            lanes.iter().map(|lane| pass::lane(self, &lane.input, &lane.targets, options)).collect()
        })
    }

    fn queued(&self, lanes: &[StagedLane], options: &LaneOptions, before_wait: impl FnOnce()) -> Vec<LaneOutput> {
        let mut before_wait = Some(before_wait);
        let mut outputs = Vec::with_capacity(lanes.len());
        for some in lanes.chunks(at_once(self.layout.len)) {
            outputs.extend(match self.trunk.precision() {
                Precision::Fp16 => scaled::lanes(options, some.len(), |which, options| {
                    let which: Vec<&StagedLane> = which.iter().map(|&lane| &some[lane]).collect();
                    self.queue_and_read(&which, options, &mut before_wait)
                }),
                _ => self.queue_and_read(&some.iter().collect::<Vec<_>>(), options, &mut before_wait),
            });
        }
        if let Some(before_wait) = before_wait {
            before_wait();
        }
        outputs
    }

    fn queue_and_read(
        &self,
        lanes: &[&StagedLane],
        options: &LaneOptions,
        before_wait: &mut Option<impl FnOnce()>,
    ) -> Vec<LaneOutput> {
        let queue = |lane: &&StagedLane| pass::queue(self, &lane.input, &lane.targets, options);
        let queued: Vec<Unread> = lanes.iter().map(queue).collect();
        if let Some(before_wait) = before_wait.take() {
            before_wait();
        }
        Unread::read(&queued)
    }
}

/// Lanes of which each has so many gradients that are read at once. They lie there twice for a moment, one by one and
/// behind each other.
fn at_once(gradients: usize) -> usize {
    (UNREAD_BYTES / (2 * size_of::<f32>() * gradients.max(1))).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_gradients_are_read_at_once_and_huge_ones_one_by_one() {
        // An adapter of MiniLM, a fusion of a BERT of 12 layers, and more than fits.
        assert_eq!([340_000, 21_000_000, 1 << 30, 0].map(at_once), [394, 6, 1, 1 << 27]);
    }
}
