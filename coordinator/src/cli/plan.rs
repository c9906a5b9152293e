//! `graftwork plan`, and reading job files for every command that takes one.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use graftwork_scheduler::PlannedStage;
use graftwork_shared::{
    diagnostic::{self, Diagnostic, Severity},
    job::{Job, Spans},
};

use super::{DONE, Failure, INPUT, cache_folder, print};
use crate::{
    planner::{Machine, OPERATIONS_PER_SECOND, Planned, Planning, check_draft, plan_with_spans},
    progress::duration,
    report::{METHOD_WIDTH, STYLE, bytes},
    run,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The job file.
    file: PathBuf,
    /// How the plan, or what is wrong with it, is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Human,
    /// One JSON document.
    Json,
}

/// A job file that was read and parsed.
pub(crate) struct JobFile {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) job: Job,
    pub(crate) spans: Spans,
    pub(crate) warnings: Vec<Diagnostic>,
}

impl JobFile {
    /// Reads and parses; `Err` holds the text, its name, and every problem, or why there is no text.
    pub(crate) fn read(path: &Path) -> Result<Result<Self, Refused>, Failure> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::input(anyhow!("{name}: {error}; name a job file (see jobs/tour.toml)")))?;
        let absolute = std::path::absolute(path)?;
        let parsed = graftwork_shared::job::parse(&text, absolute.parent().unwrap_or(Path::new("/")));
        Ok(match parsed.job {
            Some(job) if parsed.diagnostics.iter().all(|problem| problem.severity == Severity::Warning) => {
                Ok(Self { name, text, job, spans: parsed.spans, warnings: parsed.diagnostics })
            }
            _ => Err(Refused { name, text, problems: parsed.diagnostics }),
        })
    }
}

/// A job file with errors.
pub(crate) struct Refused {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) problems: Vec<Diagnostic>,
}

impl Refused {
    /// Adds what is wrong with the data that the file's own errors do not concern, so that all problems come at once.
    pub(crate) async fn with_data_problems(mut self, path: &Path) -> Result<Self, Failure> {
        let absolute = std::path::absolute(path)?;
        let parsed = graftwork_shared::job::parse(&self.text, absolute.parent().unwrap_or(Path::new("/")));
        if let Some(draft) = parsed.draft {
            self.problems.extend(check_draft(&draft, &parsed.spans, &self.problems, &cache_folder()).await);
            self.problems.sort_by_key(|problem| problem.span.as_ref().map(|span| span.start));
        }
        Ok(self)
    }
}

/// Prints problems to stderr, as a compiler does.
pub(crate) fn show_problems(text: &str, name: &str, problems: &[Diagnostic]) {
    use std::io::IsTerminal as _;
    if !problems.is_empty() {
        let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        eprintln!("{}", diagnostic::render(text, name, problems, color).trim_end());
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let json = arguments.output == Output::Json;
    let refuse = |text: &str, name: &str, problems: &[Diagnostic]| {
        if json {
            print(&format!("{}\n", diagnostic::to_json(text, name, problems)));
        } else {
            show_problems(text, name, problems);
        }
        Ok(INPUT)
    };
    let file = match JobFile::read(&arguments.file)? {
        Ok(file) => file,
        Err(refused) => {
            let Refused { name, text, problems } = refused.with_data_problems(&arguments.file).await?;
            return refuse(&text, &name, &problems);
        }
    };
    let JobFile { name, text, job, spans, warnings } = file;
    let threads = run::threads(&job, None);
    let machine = Machine::here(threads * job.resources.workers, job.resources.workers, PathBuf::from(run::STATE));
    let planning = Planning { cache: cache_folder().into(), machine: Some(machine), uploads: None, nights: None };
    let planned = match plan_with_spans(job, spans, planning).await {
        Ok(planned) => planned,
        Err(mut problems) => {
            problems.splice(0..0, warnings);
            problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
            return refuse(&text, &name, &problems);
        }
    };
    let said: Vec<Diagnostic> = warnings.into_iter().chain(planned.warnings.iter().cloned()).collect();
    show_problems(&text, &name, &said);
    if json {
        let document = serde_json::json!({ "plan": planned.plan, "estimate": planned.estimate });
        print(&(serde_json::to_string_pretty(&document)? + "\n"));
    } else {
        print(&show(&planned));
    }
    Ok(DONE)
}

fn show(planned: &Planned) -> String {
    let plan = &planned.plan;
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::MAX).force_no_tty();
    table.set_header([
        "stage",
        "method",
        "train",
        "validation",
        "test",
        "steps",
        "parameters",
        "memory",
        "time",
        "waits for",
    ]);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for (stage, seconds) in plan.stages.iter().zip(&planned.estimate.stage_seconds) {
        let test = stage.test.as_ref().map_or("–".to_owned(), |test| test.rows.to_string());
        table.add_row([
            Cell::new(&stage.name),
            Cell::new(&stage.method),
            right(stage.train.rows.to_string()),
            right(stage.validation.rows.to_string()),
            right(test),
            right(stage.total_steps.to_string()),
            right(stage.trained_parameters.to_string()),
            right(bytes(stage.memory_bytes)),
            right(format!("~{}", duration(*seconds))),
            Cell::new(waits_for(stage)),
        ]);
    }
    if let Some(methods) = table.column_mut(1) {
        methods.set_constraint(METHOD_WIDTH);
    }
    let estimate = &planned.estimate;
    format!(
        "job {} ({}), base model {}\n{table}\nexpected: {} of memory, {} of disk, about {} on {} threads (an estimate from \
         {:.0} GFLOP/s a thread, not a promise)\n",
        plan.job.name,
        plan.id(),
        plan.base_model_digest.short(),
        bytes(estimate.memory_bytes),
        bytes(estimate.disk_bytes),
        duration(estimate.seconds),
        estimate.threads,
        OPERATIONS_PER_SECOND / 1e9,
    )
}

fn waits_for(stage: &PlannedStage) -> String {
    if let Some(sweep) = &stage.sweep {
        return format!("its {} trials", sweep.trials.len());
    }
    stage.needs.iter().map(graftwork_shared::id::Name::as_str).collect::<Vec<_>>().join(", ")
}
