//! Published tensors of a tiny job, by numeric class. When one of these digests changes, arithmetic, the order of rows,
//! random numbers or the layout of a file changed: raise [`graftwork_shared::NUMERICS_VERSION`], and only then write the
//! new digests here.
//!
//! A machine of a class that is not in the table skips the test and prints the line to add.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use graftwork_shared::{NUMERICS_VERSION, digest::Digest, recipe::NumericClass};
use graftwork_tests::{Run, World, program, tensor_digests};
use libtest_mimic::{Arguments, Failed, Trial};

/// The version that the digests belong to.
const VERSION: u32 = 5;

/// Numeric class and digest.
const KNOWN: [(&str, &str); 1] =
    [("cpu/AuthenticAMD/avx2/libtorch-2.11.0", "e06c6bb17b855fdb9f79745917415e5becd38af50338360369f9d7ca870cd583")];

/// The class in which workers of this machine compute, as `doctor` tells it.
fn numeric_class() -> Result<String> {
    let output = Command::new(program().with_file_name("graftwork-worker")).args(["doctor", "--json"]).output()?;
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let class: NumericClass = serde_json::from_value(findings["numeric_class"].clone())?;
    Ok(class.to_string())
}

fn found() -> Result<String> {
    let world = World::new()?;
    Run::start(&world.job("job.toml", "hub", "")?, &["--state", "state", "--threads", "2"])?.finish(0)?;
    let tensors = tensor_digests(&world.path().join("hub"))?;
    Ok(Digest::of_value("graftwork numerics", &tensors.into_values().collect::<Vec<_>>()).to_string())
}

fn check(class: &str, expected: &str) -> Result<()> {
    ensure!(VERSION == NUMERICS_VERSION, "the digests belong to numerics version {VERSION}, not {NUMERICS_VERSION}");
    let found = found()?;
    ensure!(found == expected, "arithmetic changed on {class}: {found}");
    Ok(())
}

fn main() -> ExitCode {
    let class = numeric_class().unwrap_or_else(|error| format!("{error:#}"));
    let known = KNOWN.iter().find(|(known, _)| *known == class);
    if known.is_none() {
        let found = found().unwrap_or_else(|error| format!("{error:#}"));
        eprintln!("skipped: no digest is known for this machine's class; add (\"{class}\", \"{found}\")");
    }
    let expected = known.map_or("", |(_, expected)| expected);
    let name = "a_change_of_arithmetic_raises_the_numerics_version";
    let trial = Trial::test(name, move || check(&class, expected).map_err(|error| Failed::from(format!("{error:#}"))));
    libtest_mimic::run(&Arguments::from_args(), vec![trial.with_ignored_flag(known.is_none())]).exit_code()
}
