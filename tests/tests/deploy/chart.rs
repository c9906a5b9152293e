//! The Helm chart, rendered and held to the published schemas and to what the house promises.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::VERSION;
use graftwork_tests::program;

use crate::{process::ended, root, tool};

fn check(chart: &Path, settings: &[&str]) -> Result<(bool, String)> {
    let (python, helm) = (tool("python").context("python")?, tool("helm").context("helm")?);
    let script = root().join("tests/deploy/chart.py");
    let output = Command::new(python).arg(script).arg(helm).arg(chart).args(settings).output()?;
    let Output { status, stdout, stderr } = output;
    Ok((status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr)))
}

pub(crate) fn the_chart_is_right() -> Result<()> {
    let chart = root().join("deploy/helm/graftwork");
    for settings in [
        &[][..],
        &["--set", "database.host=db.example.com:5432"],
        &["--set", "traces=https://otel:4317"],
        &["--set", "queueMetric.from=keda"],
        &["--set", "queueMetric.from=other"],
        &["--set", "store.url=az://graftwork/state,store.endpoint=https://graftwork.example.com"],
        &["--set", "store.url=gs://graftwork/state,store.endpoint="],
    ] {
        let (right, said) = check(&chart, settings)?;
        ensure!(right && said.contains("objects are right, and 0 nights"), "{settings:?}: {said}");
    }
    let nights = Nights::new()?;
    let (right, said) = check(&chart, &nights.settings())?;
    ensure!(right && said.contains("objects are right, and 2 nights"), "{said}");
    Ok(())
}

/// A job file that the coordinators of a chart run by themselves, under two names.
struct Nights {
    _folder: tempfile::TempDir,
    settings: [String; 2],
}

impl Nights {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("nightly.toml");
        // What a template or YAML might take for its own.
        fs::write(&file, "name = \"{{ a }}: 'b' # <c>\"\n[nightly]\ncron = \"0 2 * * *\"\n")?;
        let settings = ["small", "large"].map(|name| format!("nightly.jobs.{name}={}", file.display()));
        Ok(Self { _folder: folder, settings })
    }

    fn settings(&self) -> [&str; 5] {
        ["--set-file", &self.settings[0], "--set-file", &self.settings[1], "--set=nightly.code=4f0c2a91d3"]
    }
}

/// Where a container's own rights are told, beside those of its pod.
const IN_THE_CONTAINER: &str = "readOnlyRootFilesystem: true";

/// The check itself: each change takes away something that it must miss.
pub(crate) fn a_chart_that_is_wrong_is_found_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let chart = folder.path().join("chart");
    let copied = Command::new("cp").arg("-r").arg(root().join("deploy/helm/graftwork")).arg(&chart).status()?;
    ensure!(copied.success(), "the chart cannot be copied");
    for (file, right, wrong, problem) in [
        ("_helpers.tpl", IN_THE_CONTAINER, "readOnlyRootFilesystem: false", "its root can be written"),
        ("_helpers.tpl", "runAsNonRoot: true", "runAsNonRoot: false", "the pod may run as root"),
        ("_helpers.tpl", IN_THE_CONTAINER, "runAsUser: 0\n  readOnlyRootFilesystem: true", "its pod may not"),
        ("_helpers.tpl", IN_THE_CONTAINER, "privileged: true\n  readOnlyRootFilesystem: true", "its pod may not"),
        ("_helpers.tpl", "drop: [ALL]", "drop: [ALL], add: [SYS_ADMIN]", "it adds privileges"),
        ("workers.yaml", "livenessProbe:", "readinessProbe2:", "no livenessProbe"),
        (
            "workers.yaml",
            "valueFrom: {secretKeyRef: {name: {{ $.Values.secrets.join }}, key: token}}",
            "value: graftwork-join-secret",
            "GRAFTWORK_TOKEN is no reference to a secret",
        ),
        (
            "workers.yaml",
            "--metrics-token-env=METRICS_TOKEN",
            "--metrics-token=0123456789abcdef",
            "worker: a secret stands in its arguments",
        ),
        (
            "coordinator.yaml",
            "@{{ $database }}",
            ":hunter2@{{ $database }}",
            "coordinator: a secret stands in its arguments",
        ),
        ("coordinator.yaml", "value: /scratch/cache", "value: graftwork-submit-0123", "XDG_CACHE_HOME holds a secret"),
        ("queue.yaml", "externalRules:", "# password: hunter2\n    externalRules:", "config.yaml holds a secret"),
        ("workers.yaml", "maxReplicas: {{", "mostReplicas: {{", "HorizontalPodAutoscaler"),
        ("workers.yaml", "{name: graftwork_queue}", "{name: graftwork_stages}", "nobody serves ['graftwork_stages']"),
        ("queue.yaml", "seriesQuery:", "seriesQuestion:", "ConfigMap check-queue-metric"),
    ] {
        let path = chart.join("templates").join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(right), "{file} has no {right:?} any more");
        fs::write(&path, text.replace(right, wrong))?;
        let (right, said) = check(&chart, &[])?;
        ensure!(!right && said.contains(problem), "{problem}: {said}");
        fs::write(&path, text)?;
    }
    let nights = Nights::new()?;
    for (file, right, wrong, problem) in [
        ("coordinator.yaml", "--nightly-history=/hub/", "--nightly-history=/scratch/", "go with the pod"),
        ("coordinator.yaml", "mountPath: /nightly,", "mountPath: /nights,", "/nightly/small.toml is mounted nowhere"),
        ("nightly.yaml", "{{ toJson $text }}", "\"[nightly]\"", "/nightly/large.toml does not say when"),
    ] {
        let path = chart.join("templates").join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(right), "{file} has no {right:?} any more");
        fs::write(&path, text.replace(right, wrong))?;
        let (right, said) = check(&chart, &nights.settings())?;
        ensure!(!right && said.contains(problem), "{problem}: {said}");
        fs::write(&path, text)?;
    }
    let (path, keda) = (chart.join("values.yaml"), ["--set", "queueMetric.from=keda"]);
    let text = fs::read_to_string(&path)?;
    let own_image = format!("    image: {{repository: graftwork-worker-cuda, tag: \"{VERSION}\"}}\n");
    for (right, wrong, problem) in [
        ("repository: graftwork-worker-cuda,", "repository: graftwork-worker,", "the image for processors"),
        (&own_image, "", "the pool \"gpu\" runs on GPUs and names no image"),
        ("    gpus: 1\n", "", "it runs on GPUs and asks for none"),
        ("device: cuda\n", "device: cpu\n", "no pool runs on GPUs"),
        ("prometheus: http://prometheus-server", "prometheus: prometheus-server", "serverAddress"),
        ("stagesEach: 4", "stagesEach: none", "threshold"),
    ] {
        ensure!(text.contains(right), "values.yaml has no {right:?} any more");
        fs::write(&path, text.replace(right, wrong))?;
        let (right, said) = check(&chart, &keda)?;
        ensure!(!right && said.contains(problem), "{wrong}: {said}");
    }
    fs::write(&path, text)?;
    let path = chart.join("templates/workers.yaml");
    let text = fs::read_to_string(&path)?;
    for (right, wrong, problem) in [
        ("maxReplicaCount:", "mostReplicaCount:", "'mostReplicaCount' was unexpected"),
        ("minReplicaCount: {{ .autoscaling.minReplicas }}", "minReplicaCount: some", "$.spec.minReplicaCount"),
        ("      metricType: AverageValue\n", "      metricTyp: AverageValue\n", "'metricTyp' was unexpected"),
    ] {
        ensure!(text.contains(right), "workers.yaml has no {right:?} any more");
        fs::write(&path, text.replace(right, wrong))?;
        let (right, said) = check(&chart, &keda)?;
        ensure!(!right && said.contains(problem), "{wrong}: {said}");
    }
    fs::write(&path, text)?;
    let (right, said) = check(&chart, &["--set", "queueMetric.from=guessed"])?;
    ensure!(!right, "a source that is none is taken: {said}");
    Ok(())
}

/// What autoscalers are told: the stages of their own namespace that are ready or running, and nothing where nobody leads.
/// Prometheus' own tool evaluates the query of the rendered chart.
pub(crate) fn pools_follow_the_queue() -> Result<()> {
    let (python, helm) = (tool("python").context("python")?, tool("helm").context("helm")?);
    let (script, chart) = (root().join("tests/deploy/pool_query.py"), root().join("deploy/helm/graftwork"));
    for from in ["prometheus-adapter", "keda"] {
        let setting = format!("queueMetric.from={from}");
        let mut asked = Command::new(&python);
        let output = asked.arg(&script).arg(&helm).arg(&chart).args(["--set", &setting]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let query = String::from_utf8(output.stdout)?.trim().to_owned();
        let folder = tempfile::tempdir()?;
        let case = serde_json::json!({
            "rule_files": [],
            "evaluation_interval": "1m",
            "tests": [{
                "interval": "1m",
                "input_series": [
                    {"series": "graftwork_stages{namespace=\"here\",pod=\"a\",place=\"ready\"}", "values": "3x10 _x10"},
                    {"series": "graftwork_stages{namespace=\"here\",pod=\"a\",place=\"running\"}", "values": "2x10 _x10"},
                    {"series": "graftwork_stages{namespace=\"here\",pod=\"a\",place=\"waiting\"}", "values": "7x10 _x10"},
                    {"series": "graftwork_stages{namespace=\"there\",pod=\"b\",place=\"ready\"}", "values": "90x30"},
                ],
                "promql_expr_test": [
                    {"expr": query, "eval_time": "5m", "exp_samples": [{"value": 5}]},
                    {"expr": query, "eval_time": "19m", "exp_samples": []},
                ],
            }],
        });
        let path = folder.path().join("queue.test.yml");
        fs::write(&path, case.to_string())?;
        let output = Command::new("promtool").args(["test", "rules"]).arg(&path).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{from}: {query}: {said}");
    }
    Ok(())
}

/// What docs/install.md says of Kubernetes, run as it is written: kubectl makes the secrets that it would send, and the chart
/// wants these, with these keys, and no others.
pub(crate) fn the_secrets_of_the_page_are_those_of_the_chart() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/install.md"))?;
    let block = page.split("```").find(|block| block.contains("kubectl create secret"));
    let commands = block.context("docs/install.md says no more how secrets are made")?;
    let folder = tempfile::tempdir()?;
    let tools = tool("kubectl").and_then(|path| Some(path.parent()?.to_owned())).context("tools")?;
    let programs = program().parent().context("a folder of programs")?.to_owned();
    let mut script = String::from("umask 077\n");
    for (name, text) in [("store.keys", "A:B"), ("database.password", "x"), ("metrics.token", "0123456789abcdef")] {
        script += &format!("printf %s '{text}' > {name}\n");
    }
    for line in commands.trim().lines() {
        script += &match line.split(' ').next() {
            Some("kubectl") => format!("{line} --dry-run=client --output=yaml >> made.yaml; echo --- >> made.yaml\n"),
            Some("helm") => format!("printf '{{}}' > my-values.yaml; {line} --dry-run=client > installed\n"),
            _ => format!("{line}\n"),
        };
    }
    symlink(fs::canonicalize(root().join("deploy"))?, folder.path().join("deploy"))?;
    let path = format!("{}:{}:/usr/bin:/bin", tools.display(), programs.display());
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script]).current_dir(folder.path()).env_clear().env("PATH", path).env("HOME", folder.path());
    ended(&mut shell, 0)?;
    ensure!(
        fs::read_to_string(folder.path().join("installed"))?.contains("STATUS: pending-install"),
        "helm refuses it"
    );
    let made = folder.path().join("made.yaml");
    let check = |settings: &[&str], code: i32| {
        let (python, helm) = (tool("python").context("python")?, tool("helm").context("helm")?);
        let mut check = Command::new(python);
        check
            .arg(root().join("tests/deploy/secrets.py"))
            .arg(helm)
            .arg(root().join("deploy/helm/graftwork"))
            .arg(&made);
        ended(check.args(settings), code)
    };
    let said = check(&[], 0)?;
    ensure!(said.contains("7 secrets are all"), "{said}");
    // The check itself.
    let said = check(&["--set", "secrets.join=ours"], 1)?;
    ensure!(
        said.contains("nobody made the secret ours") && said.contains("no pod reads the secret graftwork-join"),
        "{said}"
    );
    let text = fs::read_to_string(&made)?;
    fs::write(&made, text.replace("  password: ", "  passwort: "))?;
    let said = check(&[], 1)?;
    ensure!(said.contains("the secret graftwork-database has no password"), "{said}");
    Ok(())
}

pub(crate) fn the_compose_file_is_right() -> Result<()> {
    let python = tool("python").context("python")?;
    let (script, file) = (root().join("tests/deploy/compose.py"), root().join("deploy/compose/compose.yaml"));
    let said = ended(Command::new(&python).arg(&script).arg(&file), 0)?;
    ensure!(said.contains("2 services are right"), "{said}");
    // The check itself.
    let (folder, text) = (tempfile::tempdir()?, fs::read_to_string(file)?);
    let path = folder.path().join("compose.yaml");
    for (right, wrong, problem) in [
        ("stop_grace_period: 120s", "stop_grace_periods: 120s", "services.worker.stop_grace_periods: Extra inputs"),
        ("restart: unless-stopped", "restart: [unless-stopped]", "services.worker.restart: Input should be"),
        ("read_only: true", "read_only: false", "coordinator: not so: cannot write its root"),
        ("  cache:\n", "", "worker: volume cache is not declared"),
        ("      - --persist\n", "      - --persist=${TOKEN}\n", "worker: not so: holds no secret"),
    ] {
        ensure!(text.contains(right), "the Compose file has no {right:?} any more");
        fs::write(&path, text.replace(right, wrong))?;
        let said = ended(Command::new(&python).arg(&script).arg(&path), 1)?;
        ensure!(said.contains(problem), "{wrong}: {said}");
    }
    Ok(())
}

/// Where deployment files name a version, by what stands before it.
const VERSIONS: [(&str, &str); 10] = [
    ("compose/compose.yaml", "image: graftwork-coordinator:"),
    ("compose/compose.yaml", "image: graftwork-worker:"),
    ("helm/graftwork/Chart.yaml", "\nversion: "),
    ("helm/graftwork/Chart.yaml", "\nappVersion: "),
    ("helm/graftwork/values.yaml", "repository: graftwork-coordinator, tag: \""),
    ("helm/graftwork/values.yaml", "repository: graftwork-worker, tag: \""),
    ("helm/graftwork/values.yaml", "repository: graftwork-worker-cuda, tag: \""),
    ("container/coordinator.Containerfile", "-t graftwork-coordinator:"),
    ("container/worker.Containerfile", "-t graftwork-worker:"),
    ("container/worker-cuda.Containerfile", "-t graftwork-worker-cuda:"),
];

pub(crate) fn deployment_files_name_this_version() -> Result<()> {
    let mut wrong = Vec::new();
    for (file, before) in VERSIONS {
        let text = fs::read_to_string(root().join("deploy").join(file))?;
        let (_, rest) = text.split_once(before).with_context(|| format!("{file} has no {before:?} any more"))?;
        let version = rest.split(['"', ' ', '\n']).next().unwrap_or_default();
        if version != VERSION {
            wrong.push(format!("{file}: {before}{version}"));
        }
    }
    ensure!(wrong.is_empty(), "the programs have version {VERSION}: {wrong:?}");
    Ok(())
}

/// systemd itself reads the units; the programs are not installed here, so another one stands in their place.
pub(crate) fn the_units_are_right() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for (unit, instance) in [
        ("graftwork-coordinator.service", "graftwork-coordinator.service"),
        ("graftwork-worker@.service", "graftwork-worker@1.service"),
    ] {
        let text = fs::read_to_string(root().join("deploy/systemd").join(unit))?;
        ensure!(text.contains("/opt/graftwork/bin/graftwork "), "{unit} starts something else");
        let path = folder.path().join(instance);
        fs::write(&path, text.replace("/opt/graftwork/bin/graftwork ", "/bin/true "))?;
        verify.arg(path);
    }
    let output = verify.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let about = said.lines().filter(|line| line.contains("graftwork")).collect::<Vec<_>>().join("\n");
    ensure!(about.is_empty(), "{about}");
    Ok(())
}
