//! Commands that are not run with the others, each with the test that runs it and why it is another one.

use std::fs;

use crate::{page::Command, root};

/// How such commands begin in a page, which test runs them, and why not here.
struct Elsewhere {
    page: &'static str,
    begins: &'static str,
    test: (&'static str, &'static str),
    #[expect(dead_code, reason = "it is for whoever reads the list")]
    why: &'static str,
}

/// Its recipes are held against the programs by `targets.rs`, which also runs what takes seconds. The whole job is that of
/// `quickstart.rs`.
const QUICKSTART: (&str, &str) = ("docs/targets.rs", "a_small_job_goes_through_quickstart_and_nightly");
const BENCH: (&str, &str) = ("benchmark.rs", "measured_is_recorded_and_judged");
const TARGETS: (&str, &str) = ("docs/targets.rs", "every_target_of_a_page_is_read_with_what_it_calls");
const FOLLOWED: (&str, &str) = ("docs/targets.rs", "recorded_numbers_are_followed_by_make");
const RELEASE: (&str, &str) = ("deploy/release.rs", "a_job_runs_without_rust");
const CHART: (&str, &str) = ("deploy/chart.rs", "the_secrets_of_the_page_are_those_of_the_chart");
const COMPOSE: (&str, &str) = ("deploy/images.rs", "the_images_build_and_run_a_job");
const DELETED: (&str, &str) = ("deploy/retention.rs", "of_an_old_job_only_its_releases_stay");
const MOVED: (&str, &str) = ("deploy/moved.rs", "a_state_moves_to_servers_and_back");

const BISECT: (&str, &str) = ("versions.rs", "the_commit_that_made_a_measurement_worse_is_found_by_halves");
const AGAINST: (&str, &str) = ("versions.rs", "two_versions_are_measured_side_by_side_on_the_same_data");
const BY_ITSELF: (&str, &str) =
    ("by_itself.rs", "a_coordinator_runs_nights_when_they_are_due_and_goes_on_with_one_that_was_interrupted");

const LIST: [Elsewhere; 31] = [
    Elsewhere { page: "README.md", begins: "make quickstart", test: QUICKSTART, why: "it fetches, builds, and trains" },
    Elsewhere { page: "README.md", begins: "make test", test: TARGETS, why: "it runs these tests" },
    Elsewhere { page: "README.md", begins: "make check", test: TARGETS, why: "it builds everything once more" },
    Elsewhere { page: "README.md", begins: "make bench", test: BENCH, why: "hours" },
    Elsewhere { page: "README.md", begins: "make nightly", test: QUICKSTART, why: "most of an hour" },
    Elsewhere { page: "README.md", begins: "make golden ", test: FOLLOWED, why: "it names a folder of the reader's" },
    Elsewhere { page: "README.md", begins: "make follow ", test: FOLLOWED, why: "the same" },
    Elsewhere {
        page: "docs/performance.md",
        begins: "make bench-peer",
        test: ("benchmark.rs", "the_library_is_measured_beside_ours"),
        why: "it needs AdapterHub's library, and hours",
    },
    Elsewhere {
        page: "docs/performance.md",
        begins: "make bench-pieces",
        test: ("benchmark.rs", "pieces_are_measured_alone"),
        why: "it is built for it",
    },
    Elsewhere { page: "docs/performance.md", begins: "make bench-gpu", test: TARGETS, why: "it needs a GPU" },
    Elsewhere { page: "docs/performance.md", begins: "make bench", test: BENCH, why: "hours" },
    Elsewhere {
        page: "docs/performance.md",
        begins: "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE cargo run ",
        test: ("docs/targets.rs", "examples_that_measure_run_on_little"),
        why: "it shows every option at once",
    },
    Elsewhere { page: "docs/install.md", begins: "mkdir data hub ", test: COMPOSE, why: "it needs docker" },
    Elsewhere { page: "docs/install.md", begins: "docker compose ", test: COMPOSE, why: "the same" },
    Elsewhere {
        page: "README.md",
        begins: "graftwork coordinator --state postgres://",
        test: ("standby.rs", "a_killed_leader_is_followed"),
        why: "it needs PostgreSQL and an object store: make test-servers",
    },
    Elsewhere {
        page: "docs/operations.md",
        begins: "graftwork backup --state postgres://",
        test: MOVED,
        why: "the same",
    },
    Elsewhere {
        page: "docs/operations.md",
        begins: "graftwork restore /backup/graftwork-2026-11-26 --state postgres://",
        test: MOVED,
        why: "the same",
    },
    Elsewhere { page: "docs/install.md", begins: "sha256sum ", test: RELEASE, why: "it needs an archive" },
    Elsewhere { page: "docs/install.md", begins: "tar ", test: RELEASE, why: "it needs an archive" },
    Elsewhere { page: "docs/install.md", begins: "/opt/graftwork/bin/graftwork ", test: RELEASE, why: "the same" },
    Elsewhere { page: "docs/install.md", begins: "GRAFTWORK_LIBTORCH=", test: RELEASE, why: "it needs a GPU" },
    Elsewhere {
        page: "docs/install.md",
        begins: "graftwork deploy slurm ",
        test: ("deploy/slurm.rs", "trains_drains_and_queues_again"),
        why: "it needs a cluster; here it is a dry run",
    },
    Elsewhere {
        page: "README.md",
        begins: "graftwork nightly job.toml --bisect ",
        test: BISECT,
        why: "it needs a repository",
    },
    Elsewhere { page: "README.md", begins: "graftwork nightly job.toml --against ", test: AGAINST, why: "the same" },
    Elsewhere {
        page: "README.md",
        begins: "graftwork coordinator --nightly ",
        test: BY_ITSELF,
        why: "it waits for its time",
    },
    Elsewhere {
        page: "docs/nightly.md",
        begins: "graftwork nightly job.toml --bisect ",
        test: BISECT,
        why: "the same",
    },
    Elsewhere {
        page: "docs/nightly.md",
        begins: "graftwork nightly job.toml --against ",
        test: AGAINST,
        why: "the same",
    },
    Elsewhere { page: "docs/operations.md", begins: "find /srv/hub/", test: DELETED, why: "it needs that hub" },
    Elsewhere { page: "docs/operations.md", begins: "rm -r /srv/hub/", test: DELETED, why: "the same" },
    Elsewhere { page: "docs/install.md", begins: "kubectl ", test: CHART, why: "it needs a cluster" },
    Elsewhere { page: "docs/install.md", begins: "helm install ", test: CHART, why: "it needs a cluster" },
];

fn entry(command: &Command) -> Option<&'static Elsewhere> {
    LIST.iter().find(|entry| entry.page == command.page && command.text.starts_with(entry.begins))
}

/// The test that runs a command, where it is not run here.
pub(crate) fn test_of(command: &Command) -> Option<(&'static str, &'static str)> {
    // What is written is looked at here too.
    entry(command).filter(|entry| !entry.begins.starts_with("graftwork deploy slurm")).map(|entry| entry.test)
}

/// Entries for commands that no page has any more, and tests that are gone.
pub(crate) fn problems(commands: &[Command]) -> Vec<String> {
    let trials = fs::read_to_string(root().join("tests/tests/deploy/main.rs")).unwrap_or_default();
    let mut problems = Vec::new();
    for listed in &LIST {
        let Elsewhere { page, begins, test: (file, function), .. } = listed;
        if !commands.iter().any(|command| command.page == *page && command.text.starts_with(begins)) {
            problems.push(format!("{page} has no command that begins with {begins:?}"));
        }
        let text = fs::read_to_string(root().join("tests/tests").join(file)).unwrap_or_default();
        if !text.contains(&format!("fn {function}(")) {
            problems.push(format!("tests/tests/{file} has no test {function}"));
        }
        // Of these a list says which are run.
        if let Some(module) = file.strip_prefix("deploy/").and_then(|name| name.strip_suffix(".rs"))
            && ![')', ','].iter().any(|end| trials.contains(&format!(" {module}::{function}{end}")))
        {
            problems.push(format!("tests/tests/deploy/main.rs does not run {function}"));
        }
    }
    problems
}
