//! Posts the end of a night to an address that only an environment variable holds: it may be a secret, so no message
//! shows it. HTTP delivers nothing exactly once: each post carries the night's own key, by which a repeat is told.

use std::time::Duration;

use graftwork_shared::digest::Digest;
use graftwork_web::{Head, NightlyView};
use serde_json::json;

use super::output::headline;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The header of draft-ietf-httpapi-idempotency-key-header; its value is a string in quotes.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Posts the summary; `Err` says what went wrong, which fails nothing.
pub(super) async fn post(variable: &str, view: &NightlyView) -> Result<(), String> {
    let Ok(address) = std::env::var(variable) else {
        return Err(format!(
            "nothing is posted: the environment variable {variable}, which the job names as webhook, is not set"
        ));
    };
    let told = |reason| format!("the end of the night could not be posted to the address in {variable}: {reason}");
    send(&address, view).await.map_err(told)
}

/// The same whenever this night is posted, by whatever host or version, and no other night's.
fn key(view: &NightlyView) -> Digest {
    let Head { number, began_ms, ended_ms, code, .. } = &view.night;
    Digest::of_value("graftwork posted night", &(&view.job, number, began_ms, ended_ms, code))
}

async fn send(address: &str, view: &NightlyView) -> Result<(), String> {
    let regressions: Vec<_> = view
        .scores
        .iter()
        .filter(|row| row.fails())
        .map(|row| {
            json!({
                "name": row.verdict.name, "task": row.task, "verdict": row.sentence(),
                "repeat": row.repeat, "bisect": row.bisect, "commits": view.commits,
            })
        })
        .chain(view.costs.iter().filter(|cost| cost.fails()).map(|cost| {
            json!({
                "name": cost.change.name, "task": cost.task, "verdict": cost.sentence(),
                "repeat": cost.repeat, "bisect": null, "commits": cost.commits,
            })
        }))
        .collect();
    let key = key(view);
    let body = json!({
        "id": key,
        "text": headline(view),
        "job": view.job,
        "night": view.night,
        "baseline": view.baseline,
        "outcome": view.outcome,
        "regressions": regressions,
        "problems": view.problems,
    });
    // An error of the client may show the address, and that may be a secret.
    let told = |error: reqwest::Error| graftwork_shared::cause::told(&error.without_url());
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
    let request = client.build().map_err(told)?.post(address).header("content-type", "application/json");
    let request = request.header(IDEMPOTENCY_KEY, format!("\"{key}\""));
    let answer = request.body(body.to_string()).send().await.map_err(told)?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
