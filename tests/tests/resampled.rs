//! False alarms over answers of models that were really trained. A small job trains a dozen seeds; six of them are dealt out
//! into two nights again and again, over rows that are drawn again with replacement. Nothing changed between such nights, so
//! whatever is named is a false alarm, and the stated rate bounds their share. Everything is drawn from one seed: it is one
//! fixed number on each kind of processor.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{World, program};
use graftwork_verdict::{Answers, Comparison, Finding, Measure, Random, Run, Scorer, Settings, judge};
use serde_json::Value;

/// Seeds that are trained, and those of a night.
const TRAINED: u64 = 12;
const OF_A_NIGHT: usize = 3;
/// Times that seeds are dealt out.
const NIGHTS: u32 = 400;

/// The tasks of the small nightly. A sixth of all labels is wrong, so that no model knows everything and models differ.
fn write_job(world: &World) -> Result<()> {
    let mut text = String::from(
        "name = \"Dealt\"\n[base_model]\nlocation = \"base\"\n[publish]\nhub = \"hub\"\norganisation = \"tests\"\n\
         [defaults.training]\nepochs = 6\nbatch_size = 8\nlanes = 2\nlearning_rate = 5e-3\nmax_length = 32\n\
         [defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 4\n",
    );
    for task in ["topic", "mood", "strength"] {
        for (split, first) in [("train", 0), ("test", 20_000)] {
            world.write_split(task, &format!("{split}-right"), first..first + 200, false)?;
            world.write_split(task, &format!("{split}-wrong"), first + 1_000..first + 1_040, true)?;
        }
        let files = |split: &str| {
            let file = |kind: &str| format!("\"data/{task}/{split}-{kind}.parquet\"");
            format!("{split} = [{}, {}]\n", file("right"), file("wrong"))
        };
        let head = if task == "strength" { "regression" } else { "classification" };
        let (train, test) = (files("train"), files("test"));
        text += &format!(
            "[tasks.{task}]\n{train}validation = \"data/{task}/validation.parquet\"\n{test}head = \"{head}\"\n"
        );
    }
    let seeds: Vec<String> = (1..=TRAINED).map(|seed| seed.to_string()).collect();
    text += "[fusions.mood_fused]\nadapters = [\"mood\", \"strength\"]\ntask = \"mood\"\n";
    text += &format!("[nightly]\nseeds = [{}]\n", seeds.join(", "));
    Ok(fs::write(world.path().join("job.toml"), text)?)
}

fn nightly(world: &World, more: &[&str]) -> Result<()> {
    let mut command = Command::new(program());
    command.current_dir(world.path()).args(["nightly", "job.toml", "--history", "history"]);
    let output = command.args(["--threads", "2", "--progress", "none"]).args(more).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// By row, what is right and what was answered.
type Rows = BTreeMap<u64, [Value; 2]>;

/// A task or fusion: what is right, and what the model of each seed answered.
struct Task {
    name: String,
    truth: Answers,
    given: Vec<Answers>,
}

impl Task {
    fn new(name: String, seeds: &BTreeMap<u64, Rows>) -> Result<Self> {
        let values = seeds.values().flat_map(BTreeMap::values).flatten();
        let classes: BTreeSet<&str> = values.filter_map(Value::as_str).collect();
        let class = |value: &Value| {
            let class = value.as_str()?;
            u32::try_from(classes.iter().position(|known| *known == class)?).ok()
        };
        let answers = |rows: &Rows, place: usize| {
            let values = rows.values().map(|pair| &pair[place]);
            let answers = if classes.is_empty() {
                values.map(Value::as_f64).collect::<Option<Vec<f64>>>().map(Answers::Numbers)
            } else {
                values.map(class).collect::<Option<Vec<u32>>>().map(Answers::Classes)
            };
            answers.with_context(|| format!("{name} answers classes and numbers"))
        };
        let truth = answers(seeds.values().next().context("a seed answers")?, 0)?;
        let given = seeds.values().map(|rows| answers(rows, 1)).collect::<Result<Vec<Answers>>>()?;
        ensure!(given.len() as u64 == TRAINED, "{} seeds of {name} answer", given.len());
        ensure!(given.iter().all(|given| given.len() == truth.len()), "a seed of {name} lacks rows");
        Ok(Self { name, truth, given })
    }

    /// Its two scores that are compared, the one that counts first.
    fn measures(&self) -> [Measure; 2] {
        match self.truth {
            Answers::Classes(_) => [Measure::Accuracy, Measure::F1Macro],
            Answers::Numbers(_) => [Measure::Spearman, Measure::Pearson],
        }
    }
}

/// All answers of the only night, as `--export` writes them.
fn tasks(world: &World) -> Result<Vec<Task>> {
    let path = world.path().join("export/answers.jsonl");
    let lines = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut asked = BTreeMap::<String, BTreeMap<u64, Rows>>::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line)?;
        let whole = |name: &str| line[name].as_u64().with_context(|| format!("no {name} in {line}"));
        let task = line["task"].as_str().context("a line names its task")?;
        let rows = asked.entry(task.to_owned()).or_default().entry(whole("seed")?).or_default();
        rows.insert(whole("row")?, [line["right"].clone(), line["answer"].clone()]);
    }
    asked.into_iter().map(|(name, seeds)| Task::new(name, &seeds)).collect()
}

/// Two nights of the same code. A fusion is asked the rows of its task, and each seed is the same one in all tasks.
fn night(tasks: &[Task], random: &mut Random) -> Vec<Comparison> {
    let mut seeds: Vec<usize> = (0..tasks[0].given.len()).collect();
    random.shuffle(&mut seeds);
    let (mut drawn, mut comparisons) = (BTreeMap::<&str, Vec<usize>>::new(), Vec::new());
    for task in tasks {
        let (asked, count) = (task.name.trim_end_matches("_fused"), task.truth.len());
        let rows = drawn.entry(asked).or_insert_with(|| (0..count).map(|_| random.below(count)).collect());
        let again = |answers: &Answers| match answers {
            Answers::Classes(ids) => Answers::Classes(rows.iter().map(|row| ids[*row]).collect()),
            Answers::Numbers(numbers) => Answers::Numbers(rows.iter().map(|row| numbers[*row]).collect()),
        };
        let run = |place: usize| Run {
            seed: place as u64,
            before: again(&task.given[seeds[place]]),
            after: again(&task.given[seeds[OF_A_NIGHT + place]]),
        };
        let runs: Vec<Run> = (0..OF_A_NIGHT).map(run).collect();
        comparisons.extend(task.measures().map(|measure| Comparison {
            name: format!("{} {measure:?}", task.name),
            measure,
            // So that the tests alone are held to what they promise.
            threshold: 0.0,
            truth: again(&task.truth),
            runs: runs.clone(),
            earlier: Vec::new(),
        }));
    }
    comparisons
}

#[test]
fn nights_dealt_out_of_trained_models_name_anything_at_most_as_often_as_stated() -> Result<()> {
    let world = World::new()?;
    write_job(&world)?;
    nightly(&world, &[])?;
    nightly(&world, &["--export", "export"])?;
    let tasks = tasks(&world)?;
    ensure!(tasks.len() == 4, "three tasks and a fusion answer");
    for task in &tasks {
        let score = |given: &Answers| Scorer::new(task.measures()[0], &task.truth, given).plain();
        let scores: Vec<f64> = task.given.iter().map(score).collect();
        println!("{}: {scores:.3?}", task.name);
        // What always answers the same is never named, and would prove nothing.
        ensure!(task.given.iter().any(|given| *given != task.given[0]), "all seeds of {} answer the same", task.name);
    }
    let settings = Settings { draws: 2_000, ..Settings::default() };
    let mut random = Random::new(6);
    let mut named = 0;
    for _ in 0..NIGHTS {
        let verdicts = judge(&night(&tasks, &mut random), &settings);
        let anything = |finding: Finding| matches!(finding, Finding::Regressed | Finding::Improved);
        named += u32::from(verdicts.iter().any(|verdict| anything(verdict.finding)));
    }
    let rate = f64::from(named) / f64::from(NIGHTS);
    println!("{rate:.4} of {NIGHTS} nights without a change name anything");
    // As many as chance gives to a rate of just so much, twice its standard error above it.
    let allowed =
        settings.false_alarm + 2.0 * (settings.false_alarm * (1.0 - settings.false_alarm) / f64::from(NIGHTS)).sqrt();
    ensure!(rate <= allowed, "{rate} of {NIGHTS} nights without a change name anything");
    Ok(())
}
