//! Where the libraries that NCCL needs are looked for.

use std::{
    env,
    path::{Path, PathBuf},
};

use libloading::Library;

use crate::{CollectiveError, transport::gloo};

/// Names a `libnccl.so.2`, or the folder that holds it.
pub(crate) const VARIABLE: &str = "GRAFTWORK_NCCL";

pub(crate) const NCCL: &str = "libnccl.so.2";
const CUDA_RUNTIME: &str = "libcudart.so";

/// A library and the name under which it was found.
pub(super) struct Found {
    pub(super) library: Library,
    pub(super) name: PathBuf,
}

/// NCCL: where the caller or `GRAFTWORK_NCCL` says, and nowhere else; otherwise where the loader looks, then beside
/// libtorch, in `nvidia/nccl/lib` next to the folder `torch`.
pub(super) fn nccl(place: Option<&Path>) -> Result<Found, CollectiveError> {
    let told = place.map(Path::to_owned).or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
    let candidates = match told {
        Some(told) if told.is_dir() => vec![told.join(NCCL)],
        Some(told) => vec![told],
        None => {
            let beside = beside_libtorch().into_iter().map(|site| site.join("nvidia/nccl/lib").join(NCCL));
            std::iter::once(PathBuf::from(NCCL)).chain(beside).collect()
        }
    };
    first(NCCL, candidates)
}

/// The CUDA runtime, of any version that NCCL and libtorch are built for. libtorch's own has been loaded before.
pub(super) fn cuda_runtime() -> Result<Found, CollectiveError> {
    let versions = ["13", "12"];
    let names = versions.map(|version| PathBuf::from(format!("{CUDA_RUNTIME}.{version}")));
    let sites = beside_libtorch();
    let beside = sites
        .iter()
        .flat_map(|site| versions.map(|version| site.join(format!("nvidia/cu{version}/lib/{CUDA_RUNTIME}.{version}"))));
    first(CUDA_RUNTIME, names.into_iter().chain(beside).collect())
}

/// The folder that holds `torch` and `nvidia`.
fn beside_libtorch() -> Option<PathBuf> {
    gloo::libtorch()?.canonicalize().ok()?.ancestors().nth(3).map(Path::to_owned)
}

fn first(name: &'static str, candidates: Vec<PathBuf>) -> Result<Found, CollectiveError> {
    let mut reasons = Vec::new();
    for candidate in candidates {
        // SAFETY: both libraries' initialisers start nothing before their first call.
        match unsafe { Library::new(&candidate) } {
            Ok(library) => return Ok(Found { library, name: candidate }),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(CollectiveError::Library { library: name, reason: reasons.join("; ") })
}
