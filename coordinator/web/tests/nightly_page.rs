//! The page of a night with one regression: what it must say first, and what it must never hold.

use std::collections::BTreeMap;

use graftwork_shared::assignment::Usage;
use graftwork_verdict::{Answers, Comparison, Measure, Run, Series, Settings, Worse, changes, judge};
use graftwork_web::{
    Alone, Cost, Curve, Curves, Flip, Head, NightOutcome, NightlyView, PairedCost, Past, Problem, Row, nightly_page,
};

fn head(number: u64) -> Head {
    Head {
        number,
        began_ms: number * 86_400_000,
        ended_ms: number * 86_400_000 + 900_000,
        version: "0.1.0".to_owned(),
        numerics: 2,
        code: format!("commit-{number}"),
        resumed: 1,
        recoveries: vec!["mail went on 0.8 s after the next coordinator began".to_owned()],
    }
}

fn comparison(name: &str, lost: usize) -> Comparison {
    let truth: Vec<u32> = (0..500).map(|row| row % 2).collect();
    let wrong = |from: usize, count: usize| {
        let mut given = truth.clone();
        given[from..from + count].iter_mut().for_each(|answer| *answer = 1 - *answer);
        Answers::Classes(given)
    };
    let run = |seed: u64| {
        let at = usize::try_from(seed).expect("a small seed") * 10;
        Run { seed, before: wrong(at, 40), after: wrong(at + 3, 40 + lost) }
    };
    let runs = (1..=3).map(run).collect();
    let (name, truth) = (name.to_owned(), Answers::Classes(truth));
    Comparison { name, measure: Measure::Accuracy, threshold: 0.01, truth, runs, earlier: Vec::new() }
}

fn view() -> NightlyView {
    let settings = Settings::default();
    let verdicts = judge(&[comparison("<films> accuracy", 100), comparison("mail accuracy", 0)], &settings);
    let scores = verdicts.into_iter().zip(["<films>", "mail"]).map(|(verdict, task)| Row {
        flipped: vec![Flip {
            row: 7,
            label: "good & bad".to_owned(),
            before: vec!["good".to_owned()],
            after: vec!["bad".to_owned()],
            worse: 3,
            text: Some("a <dull> film".to_owned()),
        }],
        task: task.to_owned(),
        fusion: task == "mail",
        method: "seq_bn".to_owned(),
        main: true,
        expected: None,
        repeat: format!("graftwork nightly job.toml --repeat 8:{task}"),
        bisect: Some(format!("graftwork nightly job.toml --bisect 8:{task}")),
        verdict,
    });
    let values: Vec<f64> = vec![10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0];
    let series = Series { name: "mail: core-seconds".to_owned(), values: values.clone(), worse: Worse::Higher };
    let cost = changes(&[series], &settings).into_iter().map(|change| Cost {
        change,
        task: Some("mail".to_owned()),
        since: 2,
        expected: None,
        repeat: "graftwork nightly job.toml --repeat 8:mail".to_owned(),
        commits: Vec::new(),
        values: (2..).zip(values.clone()).collect(),
    });
    let past = |number| Past {
        head: head(number),
        good: true,
        scores: BTreeMap::from([("mail".to_owned(), vec![0.91, 0.92, 0.93])]),
        usage: Usage::default(),
    };
    NightlyView {
        job: "night & day".to_owned(),
        night: head(8),
        baseline: Some(head(7)),
        outcome: NightOutcome::Regressed,
        problems: vec![Problem { name: "poems".to_owned(), message: "is new".to_owned(), fails: false }],
        scores: scores.collect(),
        alone: Vec::new(),
        costs: cost.collect(),
        commits: ["1f0c2a91d3 Notes", "9be1c07a55 <b> & others"].map(str::to_owned).to_vec(),
        pairs: Vec::new(),
        history: (6..=8).map(past).collect(),
        usage: Usage { core_seconds: 700.0, examples: 10_000, ..Usage::default() },
        false_alarm: 0.05,
        again: "graftwork nightly job.toml".to_owned(),
    }
}

/// A task and a fusion with two seeds each, and the same of the baseline.
fn curves() -> Curves {
    let curve = |task: &str, seed: u64, fused: &[&str]| Curve {
        task: task.to_owned(),
        seed,
        metric: "accuracy".to_owned(),
        scores: vec![(10, 0.5), (20, 0.75)],
        loss: vec![(5, 0.9), (10, 0.5), (20, 0.25)],
        validation: vec![(10, 0.6), (20, 0.3)],
        fused: fused.iter().map(|name| (*name).to_owned()).collect(),
        attention: if fused.is_empty() {
            Vec::new()
        } else {
            vec![vec![0.1 * seed as f64, 1.0 - 0.1 * seed as f64]; 2]
        },
    };
    let all = || [1, 3].map(|seed| [curve("mail", seed, &[]), curve("<both>", seed, &["mail", "films"])]).concat();
    Curves { now: all(), before: all() }
}

#[test]
fn learning_curves_and_attention_are_in_the_page_itself() {
    let page = nightly_page(&view(), &curves());
    let training = page.split("id=\"training\"").nth(1).and_then(|rest| rest.split("</section>").next()).unwrap();
    assert_eq!(training.matches("<article").count(), 2, "{training}");
    for words in ["validation accuracy of mail by update", "&lt;both&gt;", "the baseline's", "<th>films</th>"] {
        assert!(training.contains(words), "{words}: {training}");
    }
    // Two seeds now and two of the baseline in each of the two charts; validation loss is drawn for both.
    assert_eq!(training.matches("class=\"line score\"").count(), 4);
    assert_eq!(training.matches("class=\"line before\"").count(), 8);
    assert!(training.contains(">0.20<") && training.contains(">0.80<"), "the mean over both seeds: {training}");
    assert!(!page.contains("job.html"), "nothing lies elsewhere");
    assert!(nightly_page(&view(), &Curves::default()).contains("None were kept."));
}

#[test]
fn what_compares_with_nothing_is_on_the_leaderboard_by_itself() {
    let mut view = view();
    let before = nightly_page(&view, &Curves::default());
    assert!(!before.contains("Nothing to compare with yet"));
    view.alone = vec![Alone {
        task: "<poems>".to_owned(),
        fusion: true,
        method: "fusion of 2".to_owned(),
        metric: "accuracy".to_owned(),
        seeds: vec![0.5, 0.75, 0.625],
    }];
    let page = nightly_page(&view, &Curves::default());
    let board = &page[page.find("id=\"leaderboard\"").unwrap()..page.find("id=\"history\"").unwrap()];
    let places = ["Nothing to compare with yet", "&lt;poems&gt;", "0.625", "0.5", "0.75"].map(|text| board.find(text));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {board}");
}

#[test]
fn the_leaderboard_has_the_scores_that_count_first_and_the_highest_of_them_above() {
    let mut view = view();
    // Regressions are named in their own section; here the better task is above, and a second score below both.
    let mut second = view.scores[1].clone();
    (second.main, second.task, second.verdict.means[1]) = (false, "mail, once more".to_owned(), 0.999);
    view.scores.insert(0, second);
    view.usage.gpu_seconds = 90.0;
    let page = nightly_page(&view, &Curves::default());
    let board = &page[page.find("id=\"leaderboard\"").unwrap()..page.find("id=\"history\"").unwrap()];
    let places = ["<th scope=\"row\">mail ", "&lt;films&gt;", "mail, once more"].map(|text| board.find(text));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {board}");
    assert!(page.contains("<dt>GPU time</dt>"), "{page}");
    view.usage.gpu_seconds = 0.0;
    assert!(!nightly_page(&view, &Curves::default()).contains("GPU time"));
}

#[test]
fn the_history_has_an_interval_of_each_night() {
    let mut view = view();
    let history = |view: &NightlyView| {
        let page = nightly_page(view, &Curves::default());
        page.split("id=\"history\"").nth(1).and_then(|rest| rest.split("</section>").next()).unwrap().to_owned()
    };
    let points = |history: &str, class: &str, nth: usize| {
        let line = history.split(&format!("polyline class=\"line {class}\" points=\"")).nth(nth).unwrap();
        let points = line.split('"').next().unwrap().split(' ').filter(|point| !point.is_empty());
        points.map(|point| point.split_once(',').unwrap().1.parse().unwrap()).collect::<Vec<f64>>()
    };
    // Three seeds: 4.3027 times 0.01 / √3 on both sides of 0.92.
    let three = history(&view);
    assert!(three.contains("night 8: 0.9200 ± 0.0248 over 3 seeds"), "{three}");
    let (low, high, mean) = (points(&three, "before", 1), points(&three, "before", 2), points(&three, "score", 1));
    let (least, most) = (points(&three, "loss", 1), points(&three, "loss", 2));
    assert_eq!([low.len(), high.len(), mean.len()], [3; 3], "each night has one");
    for night in 0..3 {
        // Down is larger.
        assert!(low[night] > least[night] && least[night] > mean[night] && mean[night] > most[night], "{three}");
        let (below, of_seeds) = (low[night] - mean[night], least[night] - mean[night]);
        assert!((below - (mean[night] - high[night])).abs() < 0.2 && (below / of_seeds - 2.48).abs() < 0.1, "{three}");
    }
    // One seed has none, and the other nights keep theirs.
    view.history[2].scores.insert("mail".to_owned(), vec![0.9]);
    let one = history(&view);
    assert!(one.contains("night 8: 0.9000, one seed tells no interval"), "{one}");
    assert_eq!([points(&one, "before", 1).len(), points(&one, "score", 1).len()], [2, 3]);
}

#[test]
fn regressions_come_first_with_their_error_and_how_to_repeat_them() {
    let page = nightly_page(&view(), &curves());
    let sections: Vec<usize> =
        ["id=\"regressions\"", "id=\"leaderboard\"", "id=\"history\"", "id=\"flipped\"", "id=\"costs\""]
            .iter()
            .map(|id| page.find(id).unwrap_or_else(|| panic!("no {id}")))
            .collect();
    assert!(sections.is_sorted(), "{sections:?}");
    let regressions = &page[sections[0]..sections[1]];
    assert!(regressions.contains("&lt;films&gt; accuracy") && !regressions.contains("mail"), "{regressions}");
    assert!(regressions.contains("would have been found with 80 %") && regressions.contains("at most 5 % of nights"));
    assert!(regressions.contains("--repeat 8:&lt;films&gt;"), "{regressions}");
    assert!(
        regressions.contains("Find its commit") && regressions.contains("--bisect 8:&lt;films&gt;"),
        "{regressions}"
    );
    assert!(regressions.contains("2 commits between the two nights"), "{regressions}");
    assert!(regressions.contains("<code>9be1c07a55 &lt;b&gt; &amp; others</code>"), "{regressions}");
    assert!(page[sections[3]..sections[4]].contains("<td>a &lt;dull&gt; film</td>"));
    assert!(page.contains("1 regression") && page.contains("night 7") && page.contains("good &amp; bad"));
    assert!(page.contains("mail went on 0.8 s after the next coordinator began"));
    assert!(page.contains("commit-8") && page.contains("went on after interruptions"));
}

#[test]
fn the_page_is_self_contained_and_the_same_for_the_same_view() {
    let page = nightly_page(&view(), &curves());
    assert_eq!(page, nightly_page(&view(), &curves()));
    for word in ["<script", "http://", "https://", "<link", "@import", "NaN", "inf<"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn two_versions_side_by_side_have_names_and_pairs_of_costs_and_no_history() {
    let mut view = view();
    view.night = Head { number: 0, ..head(8) };
    view.baseline = Some(Head { number: 0, ..head(7) });
    (view.costs, view.history) = (Vec::new(), Vec::new());
    view.pairs = vec![PairedCost { name: "the run: wall seconds".to_owned(), before: 10.0, after: 12.5 }];
    let page = nightly_page(&view, &Curves::default());
    assert!(page.contains("night &amp; day, commit-8") && page.contains("<dd>commit-7</dd>"), "{page}");
    assert!(page.contains("10.00 → 12.50 (+25 %)"), "{page}");
    assert!(!page.contains("id=\"history\"") && !page.contains("history of costs"), "{page}");
}

#[test]
fn a_view_survives_its_json() {
    let view = view();
    let text = serde_json::to_string(&view).expect("a view is JSON");
    assert_eq!(serde_json::from_str::<NightlyView>(&text).expect("and back"), view);
}
