//! The report page of a small finished job: what it must say, and what it must never hold.

use graftwork_shared::{
    assignment::{Evaluation, StageResult, Usage},
    data::Split,
    digest::Digest,
    event::{Outcome, StepReport},
    id::JobId,
    metric::Metric,
    recipe::NumericClass,
    sweep::{Halving, RungScore, SweepView, TrialView, Values},
    view::{JobView, StageKind, StageState, StageView},
};
use graftwork_web::report_page;

fn evaluation(metric: Metric, step: u64, score: f64) -> Evaluation {
    Evaluation { step, loss: 1.0 - score / 2.0, metrics: [(metric, score)].into() }
}

fn step(step: u64) -> StepReport {
    let loss = 1.2 / (1.0 + step as f64 / 60.0) + if step.is_multiple_of(20) { 0.08 } else { 0.0 };
    StepReport {
        step,
        total_steps: 300,
        epoch: step as f64 / 100.0,
        loss,
        learning_rate: 1e-3,
        gradient_norm: 1.0,
        examples_per_second: 120.0,
        tokens_per_second: 2400.0,
        input_wait: 0.0,
        ..StepReport::default()
    }
}

fn stage(name: &str, kind: StageKind, metric: Metric, score: f64, expect: f64) -> StageView {
    let class = NumericClass {
        device: "cpu".to_owned(),
        instructions: "avx512".to_owned(),
        libtorch: "2.11.0".to_owned(),
        vendor: "GenuineIntel".to_owned(),
    };
    let attention =
        if kind == StageKind::Fusion { vec![vec![0.2, 0.7, 0.1], vec![0.34, 0.33, 0.33]] } else { Vec::new() };
    let result = StageResult {
        weights: Digest::of(name.as_bytes()),
        steps: 300,
        best_step: 200,
        validation: Vec::new(),
        scores: [
            (Split::Validation, evaluation(metric, 200, score + 0.01)),
            (Split::Test, evaluation(metric, 200, score)),
        ]
        .into(),
        predictions: [].into(),
        data: [].into(),
        epochs: Vec::new(),
        attention,
        trained_parameters: 110_000,
        numeric_class: class,
        usage: Usage {
            core_seconds: 41.5,
            wall_seconds: 24.0,
            bytes_read: 1_234_567,
            examples: 4800,
            tokens: 96_000,
            peak_memory_bytes: 400 << 20,
            ..Usage::default()
        },
        peak: None,
    };
    StageView {
        name: name.parse().expect("a name"),
        kind,
        needs: Vec::new(),
        fused: ["question_type", "movie", "tweets"].map(str::to_owned).to_vec(),
        task: (kind == StageKind::Fusion).then(|| "movie".parse().expect("a name")),
        method: "seq_bn, reduction factor 16".to_owned(),
        rows: [1600, 200, 200],
        labels: Vec::new(),
        recipe: Digest::of(b"recipe"),
        total_steps: 300,
        trained_parameters: 110_000,
        metric,
        expect: Some(expect),
        sweep: None,
        trial: None,
        state: StageState::Published { reused: false },
        why: String::new(),
        curve: (1..=30).map(|i| step(i * 10)).collect(),
        validation: [(100, 0.6), (200, score + 0.01), (300, score)].map(|(s, v)| evaluation(metric, s, v)).to_vec(),
        usage: result.usage,
        result: Some(result),
        preempted: None,
        release: Some(format!("quickstart/{name}")),
    }
}

fn job() -> JobView {
    let digest = Digest::of(b"job");
    JobView {
        id: JobId::of(&digest),
        digest,
        name: "five <tasks> & a fusion".to_owned(),
        owner: "nlp-team".to_owned(),
        base_model: "models/all-minilm-l6-v2".to_owned(),
        base_model_digest: Digest::of(b"base"),
        hub: "out/hub".to_owned(),
        submitted_ms: 1_000_000,
        ended_ms: Some(1_184_000),
        outcome: Some(Outcome::ExpectationMissed),
        stages: vec![
            stage("question_type", StageKind::Adapter, Metric::Accuracy, 0.913, 0.85),
            stage("movie", StageKind::Adapter, Metric::Accuracy, 0.71, 0.73),
            stage("tweets", StageKind::Adapter, Metric::Spearman, 0.81, 0.78),
            stage("movie_fused", StageKind::Fusion, Metric::Accuracy, 0.76, 0.73),
        ],
        usage: Usage { core_seconds: 166.0, examples: 19_200, ..Usage::default() },
    }
}

#[test]
fn the_page_tells_results_misses_and_attention_and_fetches_nothing() {
    let page = report_page(&job());
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/report.html"), &page)
        .expect("the target folder can be written");
    assert!(page.contains("five &lt;tasks&gt; &amp; a fusion"), "texts are escaped");
    assert_eq!(page.matches(">missed<").count(), 1, "exactly one expectation is missed");
    assert_eq!(page.matches(">met<").count(), 3);
    assert!(page.contains("0.913") && page.contains("0.70"), "scores and attention are shown");
    assert!(page.contains("3 min 04 s"), "wall time is shown");
    for fetched in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!page.contains(fetched), "the page is self-contained, but has {fetched}");
    }
}

#[test]
fn equal_views_give_equal_pages() {
    assert_eq!(report_page(&job()), report_page(&job()));
}

#[test]
fn a_job_that_just_began_has_a_page_too() {
    let mut job = job();
    job.outcome = None;
    job.ended_ms = None;
    for stage in &mut job.stages {
        stage.curve.clear();
        stage.validation.clear();
        stage.result = None;
        stage.state = StageState::Waiting { for_stages: Vec::new() };
        "waits for <movie>".clone_into(&mut stage.why);
    }
    let page = report_page(&job);
    assert!(page.contains("no points yet") && !page.contains("NaN"));
    assert_eq!(page.matches("waits for &lt;movie&gt;").count(), job.stages.len(), "explain's words are on the page");
}

/// A task whose second trial was chosen; the first one stopped at its first rung.
fn swept(asynchronous: bool) -> JobView {
    let mut job = job();
    let halving = Some(Halving { factor: 2, first: 0.5, asynchronous });
    let name = |number: u32| format!("movie-trial-{number}").parse().expect("a name");
    job.stages[1].sweep = Some(SweepView {
        halving,
        combinations: 12,
        rungs: vec![150, 300],
        trials: vec![name(1), name(2)],
        chosen: Some(2),
        saved_steps: 150,
        saved_core_seconds: 20.5,
    });
    for (number, scores, state) in
        [(1, vec![0.6171], StageState::Stopped { rung: 0 }), (2, vec![0.6544, 0.7233], StageState::Chosen)]
    {
        let mut trial = stage("movie", StageKind::Adapter, Metric::Accuracy, 0.1, 0.1);
        trial.name = name(number);
        trial.expect = None;
        trial.result = None;
        trial.release = None;
        let scores = (0..).zip(scores).map(|(rung, score)| RungScore::new(rung, 150, Some(score))).collect();
        let values = Values::from([("learning_rate".to_owned(), (0.001 * f64::from(number)).into())]);
        trial.trial = Some(TrialView { task: "movie".parse().expect("a name"), number, values, rung: 0, scores });
        trial.state = state;
        job.stages.push(trial);
    }
    job
}

#[test]
fn trials_are_shown_with_values_rungs_scores_and_what_was_saved() {
    let page = report_page(&swept(false));
    for shown in
        ["learning_rate 0.002", "0.7233", "0.6171", "1/2", "2/2", ">stopped<", ">chosen<", "Trial 2 became the task"]
    {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(page.contains("2 of 12 combinations, compared at steps 150, 300"));
    assert!(page.contains("150 of 600 updates were saved"), "{page}");
    assert!(page.contains("3 adapters, 1 fusions, 2 trials"));
    assert!(!page.contains(">asynchronous<"));
    assert!(report_page(&swept(true)).contains(">asynchronous<"), "what timing had a part in is marked");
    assert!(!report_page(&job()).contains("id=\"sweeps\""), "a job without sweeps has no such section");
}
