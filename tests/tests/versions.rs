//! Other versions of the programs: two side by side on the same data, and which commit made a measurement worse. The versions
//! are commits of a real repository whose build puts the real programs in place; what differs is real too: rows that a
//! commit carries, or a program that trains with another learning rate.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{World, program};
use serde_json::Value;

/// Rows on which each task is scored.
const TESTED: u64 = 240;

/// A program that is the real one.
const PLAIN: &str = "#!/bin/sh\nexec \"$PROGRAMS/graftwork\" \"$@\"\n";
/// One that trains `topic` with a learning rate that works, whatever the job file says of it.
const TUNED: &str = "#!/bin/sh\nfor job; do :; done\n\
    if [ -f \"$job\" ]; then sed -i -E 's/^learning_rate = (0\\.00001|1e-0?5)$/learning_rate = 0.005/' \"$job\"; fi\n\
    exec \"$PROGRAMS/graftwork\" \"$@\"\n";
const MAKEFILE: &str = "build:\n\tmkdir -p target/release\n\tcp version.sh target/release/graftwork\n\
    \tln -sf \"$$PROGRAMS/graftwork-worker\" target/release/graftwork-worker\n";

/// A world that is a repository.
struct Repository {
    world: World,
}

impl Repository {
    fn new(topic: &str) -> Result<Self> {
        let world = World::new()?;
        for task in ["topic", "mood"] {
            world.write_split(task, "train", 0..240, false)?;
            world.write_split(task, "test", 20_000..20_000 + TESTED, false)?;
        }
        let task = |task: &str, more: &str| {
            format!(
                "[tasks.{task}]\ntrain = \"data/{task}/train.parquet\"\nvalidation = \"data/{task}/validation.parquet\"\n\
                 test = \"data/{task}/test.parquet\"\n{more}"
            )
        };
        let text = format!(
            "name = \"Versions\"\n[base_model]\nlocation = \"base\"\n[publish]\norganisation = \"tests\"\n\
             [defaults.training]\nepochs = 3\nbatch_size = 8\nlanes = 2\nlearning_rate = 5e-3\nmax_length = 32\n\
             [defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 4\n{}{}",
            task("topic", topic),
            task("mood", "")
        );
        let repository = Self { world };
        repository.write("nightly.toml", &text)?;
        repository.write("Makefile", MAKEFILE)?;
        repository.write("version.sh", PLAIN)?;
        // The base model is in no commit, as large files are in none.
        repository.write(".gitignore", "/base/\n/history/\n/target/\n/hub/\n")?;
        repository.git(&["init", "--quiet", "--initial-branch", "main"])?;
        Ok(repository)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.world.path().join(name);
        fs::write(&path, text)?;
        if path.extension().is_some_and(|ending| ending == "sh") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    fn git(&self, words: &[&str]) -> Result<String> {
        let who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"];
        let output = Command::new("git").current_dir(self.world.path()).args(who).args(words).output();
        let Output { status, stdout, stderr } = output.context("these tests need git")?;
        ensure!(status.success(), "git {words:?}: {}", String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8(stdout)?.trim_end().to_owned())
    }

    /// Commits everything; gives the commit's full name.
    fn commit(&self, subject: &str) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", subject])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs `graftwork nightly` and gives its stdout and stderr.
    fn nightly(&self, more: &[&str], code: i32) -> Result<(String, String)> {
        let programs = program().parent().context("programs lie in a folder")?.to_owned();
        let mut command = Command::new(program());
        command.current_dir(self.world.path()).env("PROGRAMS", programs);
        command.args(["nightly", "nightly.toml", "--history", "history", "--threads", "2", "--progress", "none"]);
        let Output { status, stdout, stderr } = command.args(more).output()?;
        let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
        ensure!(status.code() == Some(code), "{more:?} ended with {status}:\n{stdout}\n{stderr}");
        Ok((stdout, stderr))
    }

    fn report(&self, folder: &str) -> Result<Value> {
        let path = self.world.path().join("history").join(folder).join("nightly.json");
        Ok(serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)?)
    }
}

/// What was found of each main score, as `topic regressed`.
fn findings(report: &Value) -> Result<Vec<String>> {
    let rows = report["scores"].as_array().context("scores")?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<String> = rows
        .iter()
        .filter(|row| row["main"] == true)
        .map(|row| format!("{} {}", word(&row["task"]), word(&row["verdict"]["finding"])))
        .collect();
    found.sort();
    Ok(found)
}

#[test]
fn two_versions_are_measured_side_by_side_on_the_same_data() -> Result<()> {
    let repository = Repository::new("training = { learning_rate = 1e-5 }\n")?;
    repository.write("version.sh", TUNED)?;
    repository.commit("A program that finds a learning rate")?;
    repository.git(&["tag", "tuned"])?;
    repository.write("version.sh", PLAIN)?;
    repository.commit("The plain program")?;
    repository.write("Makefile", "build:\n\t@echo this compiler is too old; exit 3\n")?;
    repository.commit("A build that fails")?;
    repository.git(&["tag", "broken"])?;
    repository.write("Makefile", MAKEFILE)?;
    repository.commit("It builds again")?;

    // A folder without programs hides no revision of its name; one with programs does not decide it alone.
    let hidden = repository.world.path().join("tuned");
    fs::create_dir(&hidden)?;
    fs::copy(program(), hidden.join("graftwork"))?;
    let (_, said) = repository.nightly(&["--against", "tuned"], 1)?;
    ensure!(said.contains("write ./tuned for the folder, or refs/heads/tuned for the branch"), "{said}");
    fs::remove_file(hidden.join("graftwork"))?;

    // The programs that run now are worse than those of the tag, in one task, and their page says so.
    let (stdout, _) = repository.nightly(&["--against", "tuned"], 1)?;
    ensure!(stdout.contains("A program that finds a learning rate: REGRESSED: topic\n"), "{stdout}");
    ensure!(stdout.contains("--against tuned --only topic") && stdout.contains("without a verdict"), "{stdout}");
    let report = repository.report("beside")?;
    ensure!(findings(&report)? == ["mood same", "topic regressed"], "{report}");
    ensure!(report["pairs"].as_array().is_some_and(|pairs| pairs.len() == 5), "{}", report["pairs"]);
    let beside = repository.world.path().join("history/beside");
    let page = fs::read_to_string(beside.join("nightly.html"))?;
    ensure!(page.contains("A program that finds a learning rate") && page.contains("topic accuracy"), "{page}");
    for file in ["junit.xml", "nightly.md", "job.html", "before.html", "before/answers.parquet", "after/night.json"] {
        ensure!(beside.join(file).exists(), "{file} is there");
    }
    ensure!(!beside.join("before/state").exists() && !beside.join("after/hub").exists(), "what was trained is gone");
    ensure!(!repository.world.path().join("history/nights/000001").exists(), "it is no night of the history");

    // A folder with programs: the same ones give the same answers. One task alone is asked for.
    let programs = program().parent().context("programs lie in a folder")?.display().to_string();
    let (stdout, _) = repository.nightly(&["--against", &programs, "--only", "mood"], 0)?;
    ensure!(stdout.contains("no regression") && findings(&repository.report("beside")?)? == ["mood same"], "{stdout}");

    // What cannot be had is said.
    let (_, said) = repository.nightly(&["--against", "broken"], 1)?;
    ensure!(said.contains("A build that fails does not build") && said.contains("this compiler is too old"), "{said}");
    let (_, said) = repository.nightly(&["--against", "nothing-of-the-sort"], 1)?;
    ensure!(said.contains("nothing-of-the-sort names no commit"), "{said}");
    let (_, said) = repository.nightly(&["--against", &programs, "--only", "tropic"], 1)?;
    ensure!(said.contains("no task or fusion tropic: it has topic, mood"), "{said}");
    let folder = repository.world.path().join("data").display().to_string();
    let (_, said) = repository.nightly(&["--against", &folder], 1)?;
    ensure!(said.contains("has no program graftwork"), "{said}");
    Ok(())
}

#[test]
fn the_commit_that_made_a_measurement_worse_is_found_by_halves() -> Result<()> {
    let repository = Repository::new("")?;
    let good = repository.commit("The first rows")?;
    repository.nightly(&["--code", &good], 0)?;
    repository.write("notes.md", "first\n")?;
    let before = repository.commit("Notes")?;
    repository.world.write_split("topic", "train", 0..240, true)?;
    let culprit = repository.commit("Topics by another annotator")?;
    repository.write("Makefile", "build:\n\t@echo this compiler is too old; exit 3\n")?;
    repository.commit("A build that fails")?;
    repository.write("Makefile", MAKEFILE)?;
    repository.commit("It builds again")?;
    repository.write("notes.md", "first\nsecond\n")?;
    repository.commit("More notes")?;
    let last = repository.commit("A release")?;

    let (stdout, _) = repository.nightly(&["--code", &last], 1)?;
    ensure!(stdout.contains("night 2 against night 1: REGRESSED: topic\n"), "{stdout}");
    ensure!(stdout.contains("find its commit: graftwork nightly") && stdout.contains("--bisect 2:topic"), "{stdout}");
    // All commits between are told with it.
    let between: Vec<String> = repository
        .git(&["log", "--reverse", "--abbrev=10", "--format=%h %s", &format!("{good}..")])?
        .lines()
        .map(str::to_owned)
        .collect();
    let listed = format!("commits between the two nights:\n  {}\n", between.join("\n  "));
    ensure!(between.len() == 6 && stdout.contains(&listed), "{listed}\n{stdout}");
    ensure!(
        repository.report("nights/000002")?["commits"] == serde_json::json!(between),
        "{}",
        repository.report("nights/000002")?
    );

    // What the user has not committed yet is left alone.
    repository.write("notes.md", "first\nsecond\nnot yet\n")?;
    let standing = (repository.git(&["status", "--porcelain"])?, repository.git(&["symbolic-ref", "HEAD"])?);
    let (stdout, said) = repository.nightly(&["--bisect", "2:topic"], 0)?;
    let wanted = format!(
        "topic got worse after {} Notes, with this commit:\n  {} Topics by another annotator\n",
        &before[..10],
        &culprit[..10]
    );
    ensure!(stdout == wanted, "{stdout}\n{said}");
    ensure!(said.contains("A build that fails: left out: it does not build") && said.contains("too old"), "{said}");
    ensure!(said.matches(": measuring").count() == 5, "the ends, the middle, and one more half: {said}");
    ensure!(
        standing == (repository.git(&["status", "--porcelain"])?, repository.git(&["symbolic-ref", "HEAD"])?),
        "the user's checkout is as it was"
    );
    ensure!(!repository.world.path().join("history/versions/measured").exists(), "what was trained is gone");

    // The other task did not get worse, and that is no commit's doing.
    let (stdout, said) = repository.nightly(&["--bisect", "2:mood", "--no-build"], 1)?;
    ensure!(stdout.contains("A release is not worse now"), "{stdout}\n{said}");
    // A night whose code is no commit says how to name it.
    repository.nightly(&["--code", "programs of Tuesday", "--against", "1"], 1)?;
    let (_, said) = repository.nightly(&["--bisect", "3:topic"], 1)?;
    ensure!(said.contains("night 3 does not say which commit it measured"), "{said}");
    Ok(())
}

/// The target's own commands, with nothing to build before them and `printenv` in the place of the program.
#[test]
fn make_nightly_names_the_commit_of_the_checkout() -> Result<()> {
    let repository = Repository::new("")?;
    let code = |set: Option<&str>| -> Result<String> {
        let mut make = Command::new("make");
        make.arg("-f")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Makefile"))
            .current_dir(repository.world.path());
        make.args(["--no-print-directory", "nightly", "-o", "build", "-o", "data", "-o", "night-data"]);
        make.arg("GRAFTWORK=printenv GRAFTWORK_CODE; :");
        make.env_remove("MAKEFLAGS").env_remove("GRAFTWORK_CODE");
        let Output { status, stdout, stderr } = make.envs(set.map(|code| ("GRAFTWORK_CODE", code))).output()?;
        ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8(stdout)?.trim().to_owned())
    };
    ensure!(code(None)?.is_empty(), "nothing is committed yet: {}", code(None)?);
    let commit = repository.commit("All of it")?;
    ensure!(code(None)? == commit, "{}", code(None)?);
    ensure!(code(Some("Tuesday's"))? == "Tuesday's", "what the user says counts");
    repository.write("Makefile", "# changed\n")?;
    ensure!(code(None)? == format!("{commit}-dirty"), "{}", code(None)?);
    Ok(())
}

#[test]
fn a_job_outside_of_any_repository_is_told() -> Result<()> {
    let world = World::new()?;
    world.job("job.toml", "hub", "")?;
    let output = Command::new(program())
        .current_dir(world.path())
        .args(["nightly", "job.toml", "--against", "main"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("is in no git repository"), "{said}");
    ensure!(!world.path().join(".graftwork/nightly/tiny/beside").exists(), "nothing was begun");
    Ok(())
}
