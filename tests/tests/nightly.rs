//! Two nights of a small nightly. In the second one the rows of one task are spoiled and the coordinator is killed: the
//! same command goes on, names exactly that task, exits 1, and its page says so.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use graftwork_shared::event::EventKind;
use graftwork_tests::{Run, World, program};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::Value;

/// Rows on which each task is scored.
const TESTED: u64 = 240;

fn write_job(world: &World, more: &str) -> Result<PathBuf> {
    let task = |task: &str, head: &str| {
        format!(
            "[tasks.{task}]\ntrain = \"data/{task}/train.parquet\"\nvalidation = \"data/{task}/validation.parquet\"\n\
             test = \"data/{task}/test.parquet\"\nhead = \"{head}\"\n"
        )
    };
    let text = format!(
        "name = \"Small nightly\"\n[base_model]\nlocation = \"base\"\n[publish]\nhub = \"hub\"\norganisation = \"tests\"\n\
         [defaults.training]\nepochs = 3\nbatch_size = 8\nlanes = 2\nlearning_rate = 5e-3\nmax_length = 32\n\
         checkpoint_every = 10\n[defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 4\n{}{}{}\
         [fusions.mood_fused]\nadapters = [\"mood\", \"strength\"]\ntask = \"mood\"\n\
         [nightly]\nwebhook = \"NIGHT_HOOK\"\n{more}",
        task("topic", "classification"),
        task("mood", "classification"),
        task("strength", "regression"),
    );
    let path = world.path().join("nightly.toml");
    fs::write(&path, text)?;
    Ok(path)
}

fn nightly(world: &World, more: &[&str], hook: &str) -> Result<Output> {
    let mut command = Command::new(program());
    command.current_dir(world.path()).env("NIGHT_HOOK", hook);
    command.args(["nightly", "nightly.toml", "--history", "history", "--threads", "2", "--progress", "none"]);
    Ok(command.args(more).output()?)
}

#[track_caller]
fn expect(output: &Output, code: i32) -> String {
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// The idempotency key and the body of what is posted, once it is.
type Posted = JoinHandle<Result<(String, Value)>>;

/// Takes one request, and gives its idempotency key and its body.
fn listen() -> Result<(String, Posted)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}/hooks/secret-path", listener.local_addr()?);
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut length, mut key) = (0, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.to_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("idempotency-key", value)) => value.trim().clone_into(&mut key),
                _ => {}
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        stream.write_all(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")?;
        Ok((key, serde_json::from_slice(&body)?))
    });
    Ok((address, heard))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Names of what a report calls regressions.
fn named(report: &Value) -> Result<Vec<String>> {
    let rows = report["scores"].as_array().context("scores")?;
    let mut names: Vec<String> = rows
        .iter()
        .filter(|row| row["verdict"]["finding"] == "regressed")
        .filter_map(|row| Some(row["task"].as_str()?.to_owned()))
        .collect();
    names.dedup();
    Ok(names)
}

fn rows(path: &Path) -> Result<i64> {
    let reader = SerializedFileReader::new(File::open(path).with_context(|| path.display().to_string())?)?;
    Ok(reader.metadata().file_metadata().num_rows())
}

#[test]
fn a_spoiled_task_is_named_although_the_coordinator_was_killed() -> Result<()> {
    let world = World::new()?;
    for task in ["topic", "mood", "strength"] {
        world.write_split(task, "train", 0..240, false)?;
        world.write_split(task, "test", 20_000..20_000 + TESTED, false)?;
    }
    let job = write_job(&world, "")?;

    // The first night has nothing to be compared with. Its address answers nobody: that fails nothing and is not shown.
    let said = expect(&nightly(&world, &[], "http://127.0.0.1:9/hooks/secret-path")?, 0);
    assert!(said.contains("Small nightly, night 1: the first one"), "{said}");
    assert!(said.contains("topic accuracy") && said.contains("lowest"), "its scores are told all the same: {said}");
    assert!(
        said.contains("could not be posted to the address in NIGHT_HOOK") && !said.contains("secret-path"),
        "{said}"
    );
    let folder = world.path().join("history/nights");
    assert!(!world.path().join("history/tonight").exists(), "what a night trained is gone");

    // The second: one task learns from wrong labels, and the coordinator is killed behind a checkpoint.
    world.write_split("topic", "train", 0..240, true)?;
    let mut run = Run::nightly(&job, "history")?;
    run.wait_for("a finished stage", |event| matches!(event.kind, EventKind::StageFinished { .. }))?;
    run.wait_for("a checkpoint", |event| matches!(event.kind, EventKind::Checkpointed { .. }))?;
    run.kill()?;
    assert!(!folder.join("000002/night.json").exists(), "a night that was killed is none yet");
    let (address, heard) = listen()?;
    let said = expect(&nightly(&world, &[], &address)?, 1);
    assert!(said.contains("night 2 goes on where it was interrupted"), "{said}");
    assert!(said.contains("Small nightly, night 2 against night 1: REGRESSED: topic\n"), "{said}");

    let report: Value = serde_json::from_str(&read(&folder.join("000002/nightly.json"))?)?;
    assert_eq!((named(&report)?, report["night"]["resumed"].as_u64()), (vec!["topic".to_owned()], Some(1)));
    let recovered = report["night"]["recoveries"][0].as_str().unwrap_or_default();
    assert!(recovered.contains("after the next coordinator began"), "{report}");
    // Each row that is listed has the beginning of its text.
    let flipped = report["scores"][0]["flipped"].as_array().context("rows that got worse")?;
    let text = flipped[0]["text"].as_str().context("its text")?;
    ensure!(flipped.iter().all(|flip| flip["text"].is_string()), "{flipped:?}");
    ensure!(said.contains(&format!("  row {}: {text}\n", flipped[0]["row"])), "{text} {said}");
    let same = report["scores"].as_array().context("scores")?.iter().filter(|row| row["verdict"]["finding"] == "same");
    assert_eq!(same.count(), 6, "two scores of each of the others are the same answers: {report}");
    let page = read(&folder.join("000002/nightly.html"))?;
    let regressions = page.split("id=\"regressions\"").nth(1).and_then(|rest| rest.split("</section>").next());
    let regressions = regressions.context("the page has regressions")?;
    assert!(regressions.contains("topic accuracy") && regressions.contains(">regression<"), "{regressions}");
    assert!(!regressions.contains("mood") && !regressions.contains("strength"), "{regressions}");
    assert!(page.contains("Rows whose answers got worse") && !page.contains("<script"), "self-contained");
    let junit = read(&folder.join("000002/junit.xml"))?;
    assert!(junit.contains("failures=\"2\"") && junit.contains("name=\"topic accuracy\">\n    <failure"), "{junit}");
    let [tests, failures, cases, failed] = counted(&folder.join("000002/junit.xml"))?;
    assert_eq!((tests, failures, failed), (cases, 2, 2), "{junit}");
    assert!(read(&folder.join("000002/nightly.md"))?.contains("| topic accuracy |"));
    assert!(read(&folder.join("000002/nightly.md"))?.contains(&format!("- row {}: `{text}`;", flipped[0]["row"])));
    let (key, posted) = heard.join().expect("the listener ends")?;
    assert_eq!((key, posted["id"].as_str().map(str::len)), (posted["id"].to_string(), Some(64)), "{posted}");
    assert_eq!(
        (&posted["outcome"], &posted["regressions"][0]["task"]),
        (&"regressed".into(), &"topic".into()),
        "{posted}"
    );
    assert_eq!(posted["text"], "Small nightly, night 2 against night 1: REGRESSED: topic");
    let (first, lists) = (&posted["regressions"][0], [&posted["regressions"][0]["commits"], &posted["problems"]]);
    let repeat = first["repeat"].as_str().context("how it is repeated")?;
    assert!(repeat.ends_with("--repeat 2:topic") && first["verdict"].is_string(), "{posted}");
    // No night names a commit here, so there is nothing to look for among them.
    assert!(first["bisect"].is_null() && lists.iter().all(|list| list.is_array()), "{posted}");

    look_again(&world, &posted["id"])
}

/// What a reader of XML counts in a file of JUnit's: tests and failures as it says, then its cases and those that failed.
fn counted(path: &Path) -> Result<[u64; 4]> {
    let count = "import sys, xml.etree.ElementTree as tree; suite = tree.parse(sys.argv[1]).getroot(); \
                 print(suite.get('tests'), suite.get('failures'), len(suite.findall('testcase')), \
                 len(suite.findall('testcase/failure')))";
    let Output { status, stdout, stderr } = Command::new("python3").args(["-c", count]).arg(path).output()?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let said = String::from_utf8(stdout)?;
    let numbers = said.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    <[u64; 4]>::try_from(numbers).map_err(|numbers| anyhow!("{numbers:?} are not four numbers"))
}

/// Spoils one byte in the middle of a file.
fn spoil(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(path, bytes)?)
}

/// What is remembered of a night's comparison; replaced by nothing, as a kill before it leaves it.
fn judged(world: &World, night: u32, forget: bool) -> Result<Value> {
    let path = world.path().join(format!("history/nights/{night:06}/night.json"));
    let mut stored: Value = serde_json::from_str(&read(&path)?)?;
    let judged = stored["judged"].clone();
    if forget {
        stored["judged"] = Value::Null;
        fs::write(&path, serde_json::to_vec(&stored)?)?;
    }
    Ok(judged)
}

#[test]
fn changed_rows_and_damaged_files_stop_no_night() -> Result<()> {
    let world = World::new()?;
    for task in ["topic", "mood", "strength"] {
        world.write_split(task, "test", 20_000..20_000 + TESTED, false)?;
    }
    let job = write_job(&world, "seeds = [1]\nkeep = 2\n")?;
    let nights = world.path().join("history/nights");
    let answers = |night: u32| nights.join(format!("{night:06}/answers.parquet"));

    // Rows change while a night is interrupted: nothing of what was trained on the old ones gets into it.
    let mut run = Run::nightly(&job, "history")?;
    run.wait_for("a finished stage", |event| matches!(event.kind, EventKind::StageFinished { .. }))?;
    run.kill()?;
    world.write_split("topic", "train", 0..200, true)?;
    let said = expect(&nightly(&world, &[], "")?, 0);
    assert!(said.contains("changed since this job was planned: night 1 starts over"), "{said}");
    let first: Value = serde_json::from_str(&read(&nights.join("000001/night.json"))?)?;
    assert_eq!((first["resumed"].as_u64(), &first["recoveries"]), (Some(0), &Value::Array(Vec::new())), "{first}");
    assert_eq!(first["shared"], false, "its workers are its own");
    let page = read(&nights.join("000001/nightly.html"))?;
    let training = page.split("id=\"training\"").nth(1).context("the page tells how it was trained")?;
    assert!(training.contains("validation accuracy of topic") && training.contains("mean attention of mood_fused"));

    // Its answers are damaged: the next night says so, and is no good one, since there is nothing to compare it with.
    let whole = fs::read(answers(1))?;
    spoil(&answers(1))?;
    let said = expect(&nightly(&world, &[], "")?, 1);
    assert!(
        said.contains("night 1 is no longer compared with: the answers in") && said.contains("are damaged"),
        "{said}"
    );
    assert!(said.contains("no good one can be read any more"), "{said}");
    assert!(read(&nights.join("000002/nightly.html"))?.contains("is no longer compared with"));
    let said = expect(&nightly(&world, &["--compare", "2", "--against", "1"], "")?, 1);
    assert!(said.contains("000001/answers.parquet are damaged"), "{said}");
    let said = expect(&nightly(&world, &["--export", "export"], "")?, 0);
    assert!(said.contains("night 1 is exported without its answers") && said.contains("2 nights"), "{said}");

    // Looking at it again writes beside it.
    let page = read(&nights.join("000002/nightly.html"))?;
    write_job(&world, "seeds = [1]\nkeep = 2\nthreshold = 0.5\n")?;
    expect(&nightly(&world, &["--compare", "2"], "")?, 1);
    fs::write(answers(1), whole)?;
    expect(&nightly(&world, &["--compare", "2"], "")?, 0);
    assert_eq!(read(&nights.join("000002/nightly.html"))?, page);
    assert!(world.path().join("history/compared/nightly.html").exists());

    // A night that waits to be compared is left without a verdict where another one is asked for.
    assert_eq!(judged(&world, 2, true)?["good"], false);
    let said = expect(&nightly(&world, &["--again"], "")?, 0);
    assert!(said.contains("night 2 stays as it was trained, without a verdict"), "{said}");
    assert_eq!(judged(&world, 2, false)?["good"], false);
    // Of the oldest night beyond `keep` the numbers stay.
    assert!(!nights.join("000001").exists() && world.path().join("history/pruned/000001.json").exists());
    let report: Value = serde_json::from_str(&read(&nights.join("000003/nightly.json"))?)?;
    assert_eq!(report["history"].as_array().map(Vec::len), Some(3), "{}", report["history"]);

    // One whose own answers are damaged before it was compared fails, is no baseline, and stops no later one.
    judged(&world, 3, true)?;
    spoil(&answers(3))?;
    let said = expect(&nightly(&world, &[], "")?, 1);
    assert!(said.contains("night 3 cannot be compared with any other night"), "{said}");
    assert_eq!((&judged(&world, 3, false)?["good"], nights.join("000004").exists()), (&Value::Bool(false), false));
    Ok(())
}

/// What can be asked of a history without training all of it. The second night was posted under this id.
fn look_again(world: &World, id: &Value) -> Result<()> {
    // A kill between training and comparing leaves a night without a verdict: it gets one before another one begins.
    let path = world.path().join("history/nights/000002/night.json");
    let mut night: Value = serde_json::from_str(&read(&path)?)?;
    ensure!(night["judged"]["good"] == false && night["judged"]["baseline"] == 1, "{}", night["judged"]);
    night["judged"] = Value::Null;
    fs::write(&path, serde_json::to_vec(&night)?)?;
    let (address, heard) = listen()?;
    let said = expect(&nightly(world, &[], &address)?, 1);
    assert!(
        said.contains("night 2 is trained and was not compared yet") && said.contains("REGRESSED: topic"),
        "{said}"
    );
    let (_, posted) = heard.join().expect("the listener ends")?;
    assert_eq!(&posted["id"], id, "whoever heard of it drops the repeat: {posted}");
    assert!(!world.path().join("history/nights/000003").exists(), "no further night was begun");

    // A reason in the job file excuses that task, and the night stays what it was.
    write_job(world, "[nightly.expected.topic]\nscore = \"labels are counted from one now\"\n")?;
    let said = expect(&nightly(world, &["--compare", "2", "--against", "1"], "")?, 0);
    assert!(said.contains("regressions, all of them expected") && said.contains("counted from one"), "{said}");
    write_job(world, "[nightly.expected.topic]\ncost = \"a reason for something else\"\n")?;
    let output = nightly(world, &["--compare", "2", "--output", "json"], "")?;
    expect(&output, 1);
    let printed: Value = serde_json::from_slice(&output.stdout)?;
    let written: Value = serde_json::from_str(&read(&world.path().join("history/compared/nightly.json"))?)?;
    assert_eq!((named(&printed)?, &printed), (vec!["topic".to_owned()], &written));

    // The printed command repeats exactly that measurement.
    let said = expect(&nightly(world, &["--repeat", "2:topic"], "")?, 0);
    assert_eq!(said.matches("the same tensors and answers").count(), 3, "{said}");
    assert!(said.contains("core-seconds for 1,000 examples (night 2: "), "{said}");
    // Its rows are spoiled now, so the first night cannot be repeated, and that is said.
    let said = expect(&nightly(world, &["--repeat", "1:topic"], "")?, 1);
    assert!(said.contains("✗ topic, seed 1: other answers"), "{said}");
    let said = expect(&nightly(world, &["--repeat", "2:tropic"], "")?, 1);
    assert!(said.contains("did not measure tropic: it has topic, mood, strength, mood_fused"), "{said}");
    let said = expect(&nightly(world, &["--against", "7"], "")?, 1);
    assert!(said.contains("night 7 is not kept") && said.contains("there are 1, 2"), "{said}");

    expect(&nightly(world, &["--export", "export"], "")?, 0);
    let export = world.path().join("export");
    assert_eq!(rows(&export.join("nights.parquet"))?, 2);
    // Two nights of four measurements with three seeds.
    let answered = 2 * 4 * 3 * usize::try_from(TESTED)?;
    assert_eq!(rows(&export.join("answers.parquet"))?, i64::try_from(answered)?);
    let lines = read(&export.join("answers.jsonl"))?;
    let first: Value = serde_json::from_str(lines.lines().next().context("a line")?)?;
    assert_eq!(
        (lines.lines().count(), &first["night"], &first["task"]),
        (answered, &1.into(), &"mood".into()),
        "{first}"
    );
    let curves: Value = serde_json::from_str(&read(&export.join("curves.json"))?)?;
    let points = |line: &str| {
        let of = |curve: &Value| curve[line].as_array().map_or(0, Vec::len);
        let nights = curves.as_array().into_iter().flatten();
        nights.flat_map(|night| night["curves"].as_array().into_iter().flatten()).map(of).sum::<usize>()
    };
    let all = ["scores", "loss", "validation"].map(points);
    assert!(all.iter().all(|points| *points > 0), "{all:?}");
    assert_eq!(rows(&export.join("curves.parquet"))?, i64::try_from(all.iter().sum::<usize>())?);
    let history: Value = serde_json::from_str(&read(&export.join("history.json"))?)?;
    ensure!(history.as_array().is_some_and(|nights| nights.len() == 2), "two nights are kept");
    let scores: usize = history
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|night| night["measurements"].as_array())
        .flatten()
        .filter_map(|measured| measured["scores"].as_object())
        .map(serde_json::Map::len)
        .sum();
    let measurements = export.join("measurements.parquet");
    assert_eq!(rows(&measurements)?, i64::try_from(scores)?);
    let read = SerializedFileReader::new(File::open(&measurements)?)?;
    let row = read.get_row_iter(None)?.next().context("a row")??;
    let column =
        |name: &str| row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field.to_string());
    let stored = &history[0]["measurements"][0];
    let usage = &stored["usage"];
    for (name, kept) in
        [("rows_digest", &stored["data"]), ("split", &stored["split"]), ("bytes_read", &usage["bytes_read"])]
    {
        assert_eq!(column(name), Some(kept.to_string()), "{name}: {row}");
    }
    assert!(column("gpu_seconds").is_some(), "{row}");
    Ok(())
}
