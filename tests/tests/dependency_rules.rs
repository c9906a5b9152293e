//! The arrows of ARCHITECTURE.md: which crate may use which, and where `tch` and `tonic` may appear.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Direct uses that the house allows, tests and examples aside.
const MAY_USE: &[(&str, &[&str])] = &[
    ("graftwork-shared", &[]),
    ("graftwork-model", &["graftwork-shared"]),
    ("graftwork-dataset", &["graftwork-shared"]),
    ("graftwork-store", &["graftwork-shared"]),
    ("graftwork-proto", &["graftwork-shared"]),
    ("graftwork-telemetry", &["graftwork-shared", "graftwork-proto"]),
    ("graftwork-certificate", &[]),
    ("graftwork-collective", &["graftwork-shared", "graftwork-certificate"]),
    ("graftwork-scheduler", &["graftwork-shared"]),
    ("graftwork-driver", &["graftwork-shared", "graftwork-scheduler"]),
    ("graftwork-verdict", &[]),
    ("graftwork-web", &["graftwork-shared", "graftwork-verdict"]),
    ("graftwork-engine", &["graftwork-shared", "graftwork-model", "graftwork-dataset", "graftwork-collective"]),
    (
        "graftwork",
        &[
            "graftwork-shared",
            "graftwork-model",
            "graftwork-dataset",
            "graftwork-store",
            "graftwork-proto",
            "graftwork-telemetry",
            "graftwork-driver",
            "graftwork-scheduler",
            "graftwork-web",
            "graftwork-verdict",
            "graftwork-certificate",
        ],
    ),
    (
        "graftwork-worker",
        &[
            "graftwork-shared",
            "graftwork-model",
            "graftwork-dataset",
            "graftwork-store",
            "graftwork-proto",
            "graftwork-telemetry",
            "graftwork-collective",
            "graftwork-engine",
            "graftwork-certificate",
        ],
    ),
    ("graftwork-tests", &["graftwork-shared", "graftwork-scheduler"]),
];

/// Packages that only the named crates may use directly.
const KEPT_TO: &[(&str, &[&str])] = &[
    ("tch", &["graftwork-engine"]),
    ("torch-sys", &[]),
    ("tonic", &["graftwork-proto", "graftwork-telemetry", "graftwork", "graftwork-worker"]),
    ("tokio-rustls", &["graftwork-proto", "graftwork-telemetry", "graftwork"]),
    ("rustls", &["graftwork-collective"]),
    ("mio", &["graftwork-collective"]),
    ("hyper", &["graftwork-telemetry"]),
    ("rcgen", &["graftwork"]),
    ("x509-parser", &["graftwork-certificate", "graftwork"]),
    ("rusqlite", &["graftwork", "graftwork-tests"]),
    ("tokio-postgres", &["graftwork", "graftwork-tests"]),
];

fn direct_uses() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path", manifest];
    let output = Command::new(cargo).args(arguments).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |value: &Value| value.as_str().expect("a text in cargo's metadata").to_owned();
    let list = |value: &Value| value.as_array().expect("a list in cargo's metadata").clone();
    let uses = |package: &Value| {
        let normal = list(&package["dependencies"]).into_iter().filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| text(&dependency["name"])).collect()
    };
    list(&metadata["packages"]).iter().map(|package| (text(&package["name"]), uses(package))).collect()
}

#[test]
fn crates_use_only_what_the_house_allows() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_USE.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    for (package, uses) in direct_uses() {
        let allowed =
            allowed.get(package.as_str()).unwrap_or_else(|| panic!("{package} has no line in the house's rules"));
        let ours: Vec<_> = uses.iter().filter(|name| name.starts_with("graftwork")).collect();
        let wrong: Vec<_> = ours.iter().filter(|name| !allowed.contains(name.as_str())).collect();
        assert!(wrong.is_empty(), "{package} may not use {wrong:?}");
    }
}

#[test]
fn libtorch_grpc_and_databases_stay_in_their_rooms() {
    for (package, uses) in direct_uses() {
        for (kept, rooms) in KEPT_TO {
            assert!(!uses.contains(*kept) || rooms.contains(&package.as_str()), "{package} may not use {kept}");
        }
    }
}
