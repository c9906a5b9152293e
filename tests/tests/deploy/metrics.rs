//! Metrics, health and readiness of both programs, and a Prometheus that reads them.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Run, World};
use serde_json::Value;

use crate::{
    process::{Process, ask, coordinator, get, graftwork, socket, until, worker},
    root,
};

/// A coordinator and a worker that tell metrics on ports of the system's choice.
struct Watched {
    folder: tempfile::TempDir,
    coordinator: Process,
    worker: Process,
    /// Addresses of the two.
    tells: [String; 2],
}

fn watched(options: &[&str]) -> Result<Watched> {
    let folder = tempfile::tempdir()?;
    let at = ["--metrics", "127.0.0.1:0"];
    let coordinator = Process::start(&mut coordinator(folder.path(), &[&at, options].concat()))?;
    coordinator.wait_for("listens on")?;
    let worker = Process::start(worker(folder.path(), &at).env("NO_COLOR", "1"))?;
    let tells = [coordinator.told("tells metrics on")?, worker.told("metrics are told")?];
    until(Duration::from_secs(30), || get(&tells[1], "/readyz", "").ok().filter(|(status, _)| *status == 200))
        .context("the worker is never ready")?;
    Ok(Watched { folder, coordinator, worker, tells })
}

/// The same once the first night of a job that the coordinator runs by itself has ended; the next one is due in winter.
fn watched_with_a_night() -> Result<(Watched, World)> {
    let world = World::new()?;
    let write = |cron: &str| -> Result<String> {
        let more = format!("[nightly]\nseeds = [1]\ncron = \"{cron}\"\n");
        let path = world.job("nightly.new", &world.path().join("hub").display().to_string(), &more)?;
        // At once whole: the coordinator may be reading it.
        fs::rename(path, world.path().join("nightly.toml"))?;
        Ok(world.path().join("nightly.toml").display().to_string())
    };
    let watched = watched(&["--nightly", &write("* * * * * *")?])?;
    let begun = until(Duration::from_mins(1), || {
        let (_, text) = get(&watched.tells[0], "/metrics", "").ok()?;
        (value(&text, "graftwork_jobs_submitted_total").ok()? > 0.5).then_some(())
    });
    begun.with_context(|| format!("no night began: {}", watched.coordinator.said().join("\n")))?;
    write("0 0 1 1 *")?;
    let ended = until(Duration::from_mins(2), || {
        let (_, text) = get(&watched.tells[0], "/metrics", "").ok()?;
        let due = value(&text, "graftwork_nightly_due_seconds{nightly=\"tiny\"}").ok()?;
        let ended = value(&text, "graftwork_nightly_ended_seconds{nightly=\"tiny\"}").ok()?;
        (due > ended + 60.0).then_some(())
    });
    ended.with_context(|| format!("the night did not end: {}", watched.coordinator.said().join("\n")))?;
    Ok((watched, world))
}

fn train(watched: &Watched) -> Result<()> {
    let (world, folder) = (World::new()?, watched.folder.path());
    world.job("job.toml", &folder.join("hub").display().to_string(), "")?;
    let job = ask(&world, folder, &["submit", "job.toml"], &[])?;
    Run::watch(&socket(folder), &job)?.finish(0)?;
    Ok(())
}

fn value(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("{name}: {text}"))?.parse().context("a number")
}

pub(crate) fn the_rules_fire() -> Result<()> {
    let folder = root().join("deploy/prometheus");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let output = Command::new("promtool").current_dir(&folder).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}");
    }
    Ok(())
}

/// Words in a text that look like names of our metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let ours = |word: &&str| word.starts_with("graftwork_") || word.starts_with("process_");
    words.filter(ours).map(str::to_owned).collect()
}

/// What the programs tell while they train is all that alerts and dashboard ask for; each alert has its paragraph.
pub(crate) fn every_name_is_known() -> Result<()> {
    let (watched, _world) = watched_with_a_night()?;
    train(&watched)?;
    let mut told = BTreeSet::new();
    for address in &watched.tells {
        let (status, text) = get(address, "/metrics", "")?;
        ensure!(status == 200, "{text}");
        told.extend(names(&text));
    }
    told.extend(told_of_certificates()?);
    let alerts = fs::read_to_string(root().join("deploy/prometheus/alerts.yml"))?;
    for file in ["deploy/prometheus/alerts.yml", "deploy/grafana/graftwork.json", "deploy/helm/graftwork/values.yaml"] {
        let asked = names(&fs::read_to_string(root().join(file))?);
        let unknown: Vec<_> = asked.difference(&told).collect();
        ensure!(unknown.is_empty(), "{file} asks for {unknown:?}, and nobody tells them");
    }
    let operations = fs::read_to_string(root().join("docs/operations.md"))?;
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        ensure!(operations.contains(&format!("### {alert}\n")), "docs/operations.md does not say what {alert} means");
    }
    counted(&watched)
}

/// Names of what programs tell that show certificates, which end soon here: both say so when they start.
fn told_of_certificates() -> Result<BTreeSet<String>> {
    const DAYS: u64 = 20;
    let folder = tempfile::tempdir()?;
    graftwork(folder.path(), &["cert", "tls", "--host", "127.0.0.1", "--days", &DAYS.to_string()], 0)?;
    let at = ["--metrics", "127.0.0.1:0"];
    let more = [&at[..], &["--listen", "https://127.0.0.1:0", "--tls", "tls", "--token-env", "OURS"]].concat();
    let token = "a token of more than sixteen";
    let leader = Process::start(coordinator(folder.path(), &more).env("OURS", token))?;
    leader.wait_for("listens on")?;
    let member = [&at[..], &["--group-tls", "tls"]].concat();
    let member = Process::start(worker(folder.path(), &member).env("NO_COLOR", "1"))?;
    let bearer = format!("authorization: Bearer {token}\r\n");
    let tells = [
        (leader.told("tells metrics on")?, bearer.as_str(), "graftwork_certificate_ends_seconds"),
        (member.told("metrics are told")?, "", "graftwork_worker_certificate_ends_seconds"),
    ];
    let mut told = BTreeSet::new();
    for (address, header, name) in &tells {
        let (status, text) = get(address, "/metrics", header)?;
        ensure!(status == 200, "{text}");
        let left = value(&text, name)? - SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let days = left / 86_400.0;
        ensure!((days - DAYS as f64).abs() < 0.1, "{name}: {days} days are left, not {DAYS}");
        told.extend(names(&text));
    }
    for (process, file) in [(&leader, "coordinator.pem"), (&member, "worker.pem")] {
        let line = process.wait_for("the certificate expires soon: `graftwork cert FOLDER --renew`")?;
        ensure!(line.contains(file), "{line}");
    }
    Ok(told)
}

/// The numbers after a night and one job, each of three tasks and a fusion.
fn counted(watched: &Watched) -> Result<()> {
    let (_, text) = get(&watched.tells[0], "/metrics", "")?;
    for (name, expected) in [
        ("graftwork_coordinator_leads", 1.0),
        ("graftwork_term", 1.0),
        ("graftwork_jobs{state=\"ended\"}", 1.0),
        ("graftwork_jobs{state=\"open\"}", 0.0),
        ("graftwork_stages_published_total", 8.0),
        ("graftwork_jobs_succeeded_total", 2.0),
        ("graftwork_jobs_forgotten_total", 1.0),
        ("graftwork_nightly_good{nightly=\"tiny\"}", 1.0),
        ("graftwork_nightly_regressions{nightly=\"tiny\"}", 0.0),
        ("graftwork_attempts_failed_total", 0.0),
        ("graftwork_workers{state=\"connected\"}", 1.0),
        ("graftwork_leases", 0.0),
    ] {
        let found = value(&text, name)?;
        ensure!((found - expected).abs() < 1e-9, "{name} is {found}, not {expected}");
    }
    ensure!(value(&text, "graftwork_attempts_total")? >= 8.0 && value(&text, "graftwork_blobs_bytes")? > 1e3, "{text}");
    let (_, text) = get(&watched.tells[1], "/metrics", "")?;
    ensure!(value(&text, "graftwork_worker_updates_total")? > 50.0, "{text}");
    ensure!(value(&text, "graftwork_worker_tokens_total")? > value(&text, "graftwork_worker_rows_total")?, "{text}");
    let memory = value(&text, "process_resident_memory_bytes")?;
    ensure!(memory > 5e7 && memory < value(&text, "graftwork_worker_machine_memory_bytes")?, "{text}");
    Ok(())
}

/// Where others reach them they want TLS and a token, and a coordinator that leaves takes the worker's readiness with it.
pub(crate) fn metrics_are_guarded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let refused = |more: &[&str]| -> Result<String> {
        let output = coordinator(folder.path(), more).output()?;
        ensure!(output.status.code() == Some(1), "{more:?} ended with {}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let said = refused(&["--metrics", "0.0.0.0:0"])?;
    ensure!(said.contains("neither a certificate nor a token"), "{said}");
    let said = refused(&["--metrics", "http://10.0.0.1:9464"])?;
    ensure!(said.contains("plain text beyond loopback"), "{said}");
    let mut watched = watched(&[])?;
    ensure!(get(&watched.tells[0], "/healthz", "")?.0 == 200 && get(&watched.tells[0], "/readyz", "")?.0 == 200);
    watched.coordinator.terminate()?;
    until(Duration::from_secs(20), || get(&watched.tells[1], "/readyz", "").ok().filter(|(status, _)| *status == 503))
        .context("a worker without a coordinator stays ready")?;
    ensure!(get(&watched.tells[1], "/healthz", "")?.0 == 200, "it is alive all the same");
    watched.worker.kill();
    with_a_token()
}

fn with_a_token() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let more = ["--metrics", "127.0.0.1:0", "--token-env", "OURS"];
    let token = "a token of more than sixteen";
    let running = Process::start(coordinator(folder.path(), &more).env("OURS", format!("{token}\n")))?;
    let at = running.told("tells metrics on")?;
    ensure!(get(&at, "/metrics", "")?.0 == 401 && get(&at, "/healthz", "")?.0 == 200);
    let (status, text) = get(&at, "/metrics", &format!("authorization: Bearer {token}\r\n"))?;
    ensure!(status == 200 && text.ends_with("# EOF\n"), "{text}");
    Ok(())
}

/// Whatever is shipped to start the programs starts them with metrics, where the shipped Prometheus looks for them.
pub(crate) fn whatever_starts_them_tells_metrics() -> Result<()> {
    let read = |name: &str| fs::read_to_string(root().join("deploy").join(name));
    let prometheus = read("prometheus/prometheus.yml")?;
    for (file, words) in [
        ("systemd/graftwork-coordinator.service", "--metrics 127.0.0.1:9464 "),
        ("compose/compose.yaml", "- --metrics=127.0.0.1:9464\n"),
        ("helm/graftwork/templates/coordinator.yaml", "- --metrics=https://0.0.0.0:9464\n"),
        ("systemd/graftwork-worker@.service", "--metrics 127.0.0.1:9465 --metrics-ports 64 "),
        ("compose/compose.yaml", "- --metrics=127.0.0.1:9465\n      - --metrics-ports=64\n"),
        ("helm/graftwork/templates/workers.yaml", "- --metrics=https://0.0.0.0:9465\n"),
    ] {
        ensure!(read(file)?.contains(words), "{file} has no {words:?}");
    }
    // Both start two workers unless they are told otherwise.
    ensure!(
        read("compose/compose.yaml")?.contains("replicas: 2\n"),
        "the Compose file starts another number of workers"
    );
    ensure!(prometheus.contains("[\"127.0.0.1:9464\"]"), "nobody reads the coordinator's: {prometheus}");
    ensure!(prometheus.contains("[\"127.0.0.1:9465\", \"127.0.0.1:9466\"]"), "nobody reads two workers': {prometheus}");
    Ok(())
}

/// Workers of one host, all started with the same words, tell metrics on ports of their own, and both are read.
pub(crate) fn workers_of_a_host_tell_on_ports_of_their_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let leader = Process::start(&mut coordinator(folder.path(), &[]))?;
    leader.wait_for("listens on")?;
    let at = free_address()?;
    let begin = |ports: &str| -> Result<Process> {
        let more = ["--metrics", &at, "--metrics-ports", ports];
        Process::start(worker(folder.path(), &more).env("NO_COLOR", "1"))
    };
    let workers = [begin("64")?, begin("64")?];
    let mut told = BTreeSet::new();
    for running in &workers {
        let address = running.told("metrics are told")?;
        let (status, text) = get(&address, "/metrics", "")?;
        ensure!(status == 200 && text.contains("graftwork_worker_welcome"), "{address}: {text}");
        told.insert(address);
    }
    ensure!(told.len() == 2, "both tell on one port: {told:?}");
    // One that may take no other port than a taken one says so, and ends.
    let taken = told.first().context("two of them")?;
    let mut one_more = worker(folder.path(), &["--metrics", taken]);
    let output = one_more.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains(taken.as_str()), "{}: {said}", output.status);
    Ok(())
}

pub(crate) fn prometheus_scrapes_both() -> Result<()> {
    let (mut watched, _world) = watched_with_a_night()?;
    let folder = tempfile::tempdir()?;
    configure(folder.path(), &watched.tells)?;
    let address = free_address()?;
    let prometheus = Process::start(Command::new("prometheus").current_dir(folder.path()).args([
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        &format!("--web.listen-address={address}"),
    ]))?;
    train(&watched)?;
    let seen = |query: &str| -> Option<f64> {
        asked(&address, query).ok()?["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let wait = Duration::from_secs(30);
    let trained = until(wait, || seen("graftwork_stages_published_total").filter(|stages| *stages > 7.5));
    trained.with_context(|| format!("Prometheus never saw the stages: {}", prometheus.said().join("\n")))?;
    until(wait, || seen("sum(up)").filter(|up| (*up - 2.0).abs() < 1e-9)).context("not both programs are up")?;
    ensure!(seen("graftwork_worker_rows_total").is_some_and(|rows| rows > 100.0), "the worker's rows");
    rules_are_evaluated(&address)?;
    every_panel_shows_something(&address)?;
    // kill -9: nobody says goodbye.
    watched.worker.kill();
    let gone = until(wait, || {
        let rules = rules(&address)?;
        let down = rules.into_iter().find(|rule| rule["name"] == "GraftworkWorkerDown")?;
        (down["state"] == "firing").then_some(down)
    });
    let labels = &gone.context("nobody was told that the worker is gone")?["alerts"][0]["labels"];
    ensure!(labels["instance"] == watched.tells[1].as_str() && labels["severity"] == "warning", "{labels}");
    Ok(())
}

/// What Prometheus answers to a query of now.
fn asked(address: &str, query: &str) -> Result<Value> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let encode = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let query: String = query.bytes().map(encode).collect();
    Ok(serde_json::from_str(&get(address, &format!("/api/v1/query?query={query}"), "")?.1)?)
}

/// Each query of the dashboard is one that Prometheus takes, and has an answer once a job was trained.
fn every_panel_shows_something(address: &str) -> Result<()> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(root().join("deploy/grafana/graftwork.json"))?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let mut queries = 0;
    for panel in panels {
        for target in panel["targets"].as_array().context("a panel has targets")? {
            let query = target["expr"].as_str().context("a target has a query")?;
            // Rates want two samples.
            let shows = || {
                let answer = asked(address, query).ok()?;
                (!answer["data"]["result"].as_array()?.is_empty()).then_some(())
            };
            let title = &panel["title"];
            until(Duration::from_secs(20), shows)
                .with_context(|| format!("panel {title} shows nothing: {query}: {:?}", asked(address, query)))?;
            queries += 1;
        }
    }
    ensure!(panels.len() >= 18 && queries >= 30, "{} panels with {queries} queries", panels.len());
    let wrong = asked(address, "sum by place (graftwork_stages)")?;
    ensure!(wrong["status"] == "error", "a query that is none is taken: {wrong}");
    Ok(())
}

/// The rules as Prometheus last evaluated them, once all could be.
fn rules(address: &str) -> Option<Vec<Value>> {
    let (_, body) = get(address, "/api/v1/rules", "").ok()?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
    rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
}

fn rules_are_evaluated(address: &str) -> Result<()> {
    let rules = until(Duration::from_secs(20), || rules(address));
    let rules = rules.context("a rule was never evaluated well")?;
    let shipped = fs::read_to_string(root().join("deploy/prometheus/alerts.yml"))?.matches("- alert: ").count();
    ensure!(rules.len() == shipped && shipped > 10, "{} rules, {shipped} in the file", rules.len());
    // The two targets are there and quiet.
    let loud: Vec<_> = rules.iter().filter(|rule| rule["state"] == "firing").map(|rule| &rule["name"]).collect();
    ensure!(loud.is_empty(), "{loud:?}");
    Ok(())
}

/// The shipped configuration, with these targets, read every second, and a worker missed after a second without it.
fn configure(folder: &Path, tells: &[String; 2]) -> Result<()> {
    let shipped = root().join("deploy/prometheus");
    let rules = fs::read_to_string(shipped.join("alerts.yml"))?;
    ensure!(rules.matches("for: 2m").count() == 1, "another alert than GraftworkWorkerDown waits for two minutes");
    fs::write(folder.join("alerts.yml"), rules.replace("for: 2m", "for: 1s"))?;
    let text = fs::read_to_string(shipped.join("prometheus.yml"))?;
    let workers = "\"127.0.0.1:9465\", \"127.0.0.1:9466\"";
    for known in ["127.0.0.1:9464", workers, "15s"] {
        ensure!(text.contains(known), "prometheus.yml has no {known} any more");
    }
    let targets = text.replace("\"127.0.0.1:9464\"", &format!("{:?}", tells[0]));
    let targets = targets.replace(workers, &format!("{:?}", tells[1]));
    fs::write(folder.join("prometheus.yml"), targets.replace("15s", "1s"))?;
    Ok(())
}

fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
