//! What NCCL says of itself on this machine, for a report to the user.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Fault, library::Nccl, settle};
use crate::{Aborter, CollectiveError};

/// A communicator of one rank is ready within a few seconds where it works at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// How far NCCL works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The library that was loaded, under the name that found it.
    pub library: Option<PathBuf>,
    /// Its version, `major.minor.patch`.
    pub version: Option<String>,
    /// Whether it gave an id for a group, which needs no GPU.
    pub unique_id: bool,
    /// Why no communicator can be made on the first GPU; `None` when one was.
    pub refusal: Option<CollectiveError>,
}

/// Loads NCCL and makes a communicator of one rank. Without a driver it is refused in NCCL's own words.
///
/// The library is looked for where `library` says (a file or its folder), or else where the environment variable
/// `GRAFTWORK_NCCL` says; without either, where the loader looks, then in `nvidia/nccl/lib` beside libtorch's folder.
pub fn probe(library: Option<&Path>) -> Report {
    let mut report = Report { library: None, version: None, unique_id: false, refusal: None };
    report.refusal = examine(library, &mut report).err();
    report
}

fn examine(library: Option<&Path>, report: &mut Report) -> Result<(), CollectiveError> {
    let nccl = Nccl::load(library)?;
    report.library = Some(nccl.name.clone());
    report.version = Some(nccl.version()?);
    let id = nccl.unique_id()?;
    report.unique_id = true;
    let communicator = nccl.init(id, 0, 1)?;
    let ready = settle(&communicator, &Aborter::new(), Instant::now() + PATIENCE);
    ready.map_err(|fault| {
        let reason = match fault {
            Fault::PeerLost(reason) | Fault::Refused(_, reason) => reason,
            Fault::Deadline | Fault::Aborted => format!("it was not ready within {} s", PATIENCE.as_secs()),
        };
        CollectiveError::Refused { library: "NCCL", operation: "a communicator", reason }
    })
}
