//! What operators use, against the real things: Prometheus scrapes both programs and evaluates the alert rules, an OTLP
//! receiver gets one connected trace, helm renders the chart and published schemas check it, Slurm runs workers, buildah builds the images.
//!
//! A test without its tool is ignored, and its name says which tool that is. Prometheus, Slurm, buildah and debootstrap are
//! the system's packages; `scripts/deploy-tools.sh` installs the rest.

mod backup;
mod chart;
mod images;
mod metrics;
mod moved;
mod process;
mod release;
mod retention;
mod slurm;
mod stores;
mod traces;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A tool of `scripts/deploy-tools.sh`, if it is there.
fn tool(name: &str) -> Option<PathBuf> {
    let tools = root().join(".graftwork/deploy-tools");
    tools.join("ready").exists().then(|| tools.join("bin").join(name))
}

/// A program of the system, if it is there.
fn installed(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&folders).chain(more).any(|folder| folder.join(name).is_file())
}

fn trial(name: &str, lacks: Option<&str>, test: fn() -> Result<()>) -> Trial {
    let named = lacks.map_or_else(|| name.to_owned(), |lacks| format!("{name} (skipped: {lacks})"));
    let run = move || test().map_err(|error| Failed::from(format!("{error:?}")));
    Trial::test(named, run).with_ignored_flag(lacks.is_some())
}

fn main() -> ExitCode {
    let without = |is_there: bool, words: &'static str| (!is_there).then_some(words);
    let tools = without(tool("python").is_some(), "scripts/deploy-tools.sh was not run");
    let prometheus = without(installed("prometheus") && installed("promtool"), "Prometheus is not installed");
    let systemd = without(installed("systemd-analyze"), "systemd-analyze is not installed");
    let unasked = without(std::env::var_os("GRAFTWORK_WRITE_STORE").is_some(), "GRAFTWORK_WRITE_STORE=1 writes it");
    let trials = vec![
        trial("the_chart_is_right", tools, chart::the_chart_is_right),
        trial("a_chart_that_is_wrong_is_found_out", tools, chart::a_chart_that_is_wrong_is_found_out),
        trial(
            "the_secrets_of_the_page_are_those_of_the_chart",
            tools,
            chart::the_secrets_of_the_page_are_those_of_the_chart,
        ),
        trial("pools_follow_the_queue", tools.or(prometheus), chart::pools_follow_the_queue),
        trial("the_compose_file_is_right", tools, chart::the_compose_file_is_right),
        trial("deployment_files_name_this_version", None, chart::deployment_files_name_this_version),
        trial("the_units_are_right", systemd, chart::the_units_are_right),
        trial("the_alert_rules_fire_for_what_they_are_for", prometheus, metrics::the_rules_fire),
        trial("every_alert_and_every_panel_knows_its_metrics", None, metrics::every_name_is_known),
        trial("prometheus_scrapes_both_programs", prometheus, metrics::prometheus_scrapes_both),
        trial("whatever_starts_them_tells_metrics", None, metrics::whatever_starts_them_tells_metrics),
        trial(
            "workers_of_a_host_tell_on_ports_of_their_own",
            None,
            metrics::workers_of_a_host_tell_on_ports_of_their_own,
        ),
        trial("metrics_are_guarded", None, metrics::metrics_are_guarded),
        trial("one_trace_goes_from_submission_to_release", tools, traces::one_trace_goes_through),
        trial("the_next_coordinator_goes_on_with_the_trace", tools, traces::the_next_coordinator_goes_on),
        trial("what_a_group_says_stands_in_the_trace", tools, traces::a_group_stands_in_the_trace),
        trial("a_state_is_put_aside_and_brought_back", None, backup::a_state_is_put_aside_and_brought_back),
        trial("of_an_old_job_only_its_releases_stay", None, retention::of_an_old_job_only_its_releases_stay),
        trial("of_a_forgotten_job_only_its_releases_stay", None, retention::of_a_forgotten_job_only_its_releases_stay),
        trial("the_store_of_this_version_is_written", unasked, stores::the_store_of_this_version_is_written),
        trial("every_released_store_opens", None, stores::every_released_store_opens),
        trial("a_state_moves_to_servers_and_back", moved::lacks(), moved::a_state_moves_to_servers_and_back),
        trial(
            "a_state_moves_to_servers_from_every_released_store",
            moved::lacks(),
            stores::every_released_store_moves_to_servers,
        ),
        trial("the_sbom_is_right", tools, release::the_sbom_is_right),
        trial("a_program_that_names_a_folder_is_found_out", None, release::a_program_that_names_a_folder_is_found_out),
        trial("a_job_runs_from_the_release_without_rust", release::lacks(), release::a_job_runs_without_rust),
        trial("the_container_files_are_right", None, images::the_container_files_are_right),
        trial("the_images_build_and_run_a_job", images::lacks(), images::the_images_build_and_run_a_job),
        trial("slurm_trains_drains_and_queues_again", slurm::lacks(), slurm::trains_drains_and_queues_again),
    ];
    let ended = libtest_mimic::run(&Arguments::from_args(), trials);
    release::clear();
    ended.exit_code()
}
