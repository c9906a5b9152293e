//! Whose fault an error is, decided where it happens: a retry helps against a machine, never against a job.

use graftwork_engine::{CheckpointError, EngineError, InputError, TrainError};
use graftwork_model::ModelError;
use graftwork_shared::assignment::{Blame, Failure};
use graftwork_store::StoreError;

/// The job or its data is at fault.
pub(super) fn user(error: impl std::fmt::Display) -> Failure {
    Failure { blame: Blame::User, message: error.to_string() }
}

/// The machine, the network or another process is at fault.
pub(super) fn machine(error: impl std::fmt::Display) -> Failure {
    Failure { blame: Blame::Machine, message: error.to_string() }
}

/// What the host could not do. Models that are damaged or unknown and uploads that the coordinator lacks are the
/// job's fault, everything else is the machine's: blobs and checkpoints depend on other processes.
pub(super) fn of_host(error: &anyhow::Error) -> Failure {
    let user = error.chain().any(|cause| cause.is::<ModelError>() || cause.is::<EngineError>())
        || matches!(error.downcast_ref(), Some(StoreError::Upload(_)));
    let message = format!("{error:#}");
    Failure { blame: if user { Blame::User } else { Blame::Machine }, message }
}

pub(super) fn of_input(error: &InputError) -> Failure {
    Failure { blame: error.blame(), message: error.to_string() }
}

pub(super) fn of_engine(error: EngineError) -> Failure {
    user(error)
}

pub(super) fn of_training(error: TrainError) -> Failure {
    user(error)
}

/// A checkpoint was written by this or another worker, never by the user.
pub(super) fn of_checkpoint(error: CheckpointError) -> Failure {
    machine(error)
}
