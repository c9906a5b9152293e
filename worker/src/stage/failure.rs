//! Whose fault an error is, decided where it happens: a retry helps against a machine, never against a job.

use graftwork_dataset::DataError;
use graftwork_engine::{CheckpointError, EngineError, InputError, TrainError};
use graftwork_model::ModelError;
use graftwork_shared::{
    NUMERICS_VERSION,
    assignment::{Blame, Failure},
    cause::told,
    credentials::CredentialError,
};
use graftwork_store::StoreError;

/// The job or its data is at fault.
pub(super) fn user(error: impl std::fmt::Display) -> Failure {
    Failure { blame: Blame::User, message: error.to_string() }
}

/// The machine, the network or another process is at fault.
pub(super) fn machine(error: impl std::fmt::Display) -> Failure {
    Failure { blame: Blame::Machine, message: error.to_string() }
}

/// What the host could not do. Models that are damaged or unknown are the job's fault, everything else is the
/// machine's: blobs and checkpoints depend on other processes, and a model that is not there may be on another worker.
/// An upload that the coordinator lacks must be made again, which is the user's to do.
pub(super) fn of_host(error: &anyhow::Error) -> Failure {
    let model = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(EngineError::Model(model)) => Some(model),
        _ => cause.downcast_ref::<ModelError>(),
    });
    let users = match model {
        Some(ModelError::Io { .. } | ModelError::MissingFile { .. }) => false,
        Some(_) => true,
        None => {
            error.chain().any(<dyn std::error::Error>::is::<EngineError>)
                || matches!(error.downcast_ref(), Some(StoreError::Upload(_)))
        }
    };
    Failure { blame: if users { Blame::User } else { Blame::Machine }, message: told(error.as_ref()) }
}

/// Planning has opened every file. One that is not here, or may not be read with what this worker's environment holds,
/// may be there for another worker, with the mount or the variable that this one lacks.
pub(super) fn of_data(error: &DataError) -> Failure {
    match error {
        DataError::MissingFile { .. }
        | DataError::Refused { .. }
        | DataError::Credentials { .. }
        | DataError::Forbidden(CredentialError::NotAllowed(_)) => {
            machine(format!("{error}; planning could read it, this worker cannot"))
        }
        _ => Failure { blame: error.blame(), message: error.to_string() },
    }
}

pub(super) fn of_input(error: &InputError) -> Failure {
    match error {
        InputError::Data(error) => of_data(error),
        _ => Failure { blame: error.blame(), message: error.to_string() },
    }
}

/// Invariant 5 holds within one version of the arithmetic: what another one computes is another result.
pub(super) fn of_numerics(planned: u32) -> Failure {
    machine(format!(
        "the job was planned for numerics version {planned}, and this worker computes version {NUMERICS_VERSION}; run \
         coordinator and workers of one version, or plan the job again"
    ))
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
