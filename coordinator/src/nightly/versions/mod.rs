//! Other versions of the programs: where they are found, how they are built, and how one of them measures.
//!
//! Versions meet at doors that stay: a job file goes in, the report as JSON and the published releases come out. So one
//! may read and write other states than this one, and is refused with its own words where the doors differ.

mod git;
mod measure;
mod text;

use std::path::{Path, PathBuf};

use anyhow::anyhow;

pub(super) use self::{
    git::{Repository, Tree},
    measure::{Measured, Side, measure},
    text::{Parts, job_text},
};
use super::night;
use crate::{
    cli::{Failure, pasted},
    run::Signals,
};

/// Program of each version.
const PROGRAM: &str = "graftwork";

/// How a revision becomes programs.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Compiling {
    /// Command that builds a revision's programs; it runs in a checkout of that revision.
    #[arg(long, value_name = "COMMAND", default_value = BUILD[0])]
    build: String,
    /// Folder in the checkout where that command leaves graftwork and graftwork-worker.
    #[arg(long, value_name = "FOLDER", default_value = BUILD[1])]
    built: PathBuf,
    /// Build nothing: with --bisect, measure each commit's job file and rows with the programs that run now.
    #[arg(long, requires = "bisect", conflicts_with = "build")]
    no_build: bool,
}

/// The default of `--build`, and of `--built`.
const BUILD: [&str; 2] = ["make build", "target/release"];

impl Compiling {
    /// What decides which programs measure, as it was typed.
    pub(super) fn words(&self) -> impl Iterator<Item = String> {
        let build = (self.build != BUILD[0]).then(|| format!("--build {}", pasted(&self.build)));
        let built = (self.built != Path::new(BUILD[1])).then(|| format!("--built {}", pasted(&self.built)));
        build.into_iter().chain(built)
    }
}

/// Programs that can measure.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// What people call it.
    pub(super) name: String,
    /// The folder with both programs.
    pub(super) programs: PathBuf,
}

/// What became of building a revision.
pub(super) enum Built {
    Programs(Version),
    /// It cannot be built; in words that follow its name.
    Not(String),
    /// The user stopped it.
    Interrupted,
}

impl Version {
    /// The programs that run now.
    pub(super) fn now(named: Option<&str>) -> Result<Self, Failure> {
        let name = night::Code::now(named)?.name;
        let programs = std::env::current_exe()?.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { name, programs })
    }

    /// The programs in a folder, as a release's archive has them.
    pub(super) fn in_folder(folder: &Path) -> Result<Self, Failure> {
        let programs = std::path::absolute(folder)?;
        // An archive has them one folder deeper.
        let places = [programs.join("bin"), programs.clone()];
        let found = places.into_iter().find(|place| place.join(PROGRAM).is_file());
        let programs = found.ok_or_else(|| Failure::input(anyhow!("{} has no program {PROGRAM}", folder.display())))?;
        Ok(Self { name: format!("programs {}", programs_digest(&programs)?), programs })
    }

    /// First digits of the digest of its programs.
    fn digest(&self) -> anyhow::Result<String> {
        programs_digest(&self.programs)
    }
}

/// Of the programs that a folder has.
fn programs_digest(folder: &Path) -> anyhow::Result<String> {
    let both = [folder.join(PROGRAM), folder.join("graftwork-worker")];
    let there: Vec<PathBuf> = both.into_iter().filter(|program| program.is_file()).collect();
    night::digest(&there)
}

impl Compiling {
    /// Builds what stands in a checkout; `name` is what people call it.
    pub(super) async fn build(&self, tree: &Tree, name: String, signals: &mut Signals) -> Result<Built, Failure> {
        if self.no_build {
            return Ok(Built::Programs(Version { name, ..Version::now(None)? }));
        }
        if let Some(problem) = tree.run(&self.build, signals).await? {
            return Ok(problem);
        }
        let programs = tree.folder().join(&self.built);
        Ok(if programs.join(PROGRAM).is_file() {
            Built::Programs(Version { name, programs })
        } else {
            Built::Not(format!("has no program {PROGRAM} in {} after `{}`", self.built.display(), self.build))
        })
    }
}
