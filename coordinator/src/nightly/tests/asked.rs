//! Texts of the rows whose answers got worse.

use std::collections::BTreeSet;

use super::*;
use crate::{nightly::texts, planner::read_texts};

/// A night over four real rows, and what is said of it once all of them are answered wrongly.
async fn told(world: &World) -> (NightlyView, Night) {
    let job = world.job(TASK).1;
    let (_, digest) = read_texts(&job.tasks[0], Split::Test, BTreeSet::new()).await.unwrap();
    let over = |number, share| {
        let (mut night, book) = night(number, &[("mood", share)]);
        night.job = job.clone();
        night.measurements.iter_mut().for_each(|measured| measured.data = Some(digest));
        (night, book)
    };
    let (before, after) = (over(1, 1.0), over(2, 0.0));
    let mut view = compared(&before, &after, &Nightly::default()).view;
    texts::show(&mut view, &after.0).await;
    (view, after.0)
}

#[tokio::test]
async fn rows_that_got_worse_are_shown_with_the_beginning_of_their_text() {
    let world = World::new();
    let long = format!("a   film\nof {}", "many words ".repeat(40));
    world.rows("test.parquet", &[&long, "bad | `film`", "fine book", "poor book"], &["good", "bad", "good", "bad"]);
    let (view, _) = told(&world).await;
    assert!(view.problems.is_empty(), "{:?}", view.problems);
    let texts: Vec<&str> = view.scores[0].flipped.iter().take(4).map(|flip| flip.text.as_deref().unwrap()).collect();
    assert!(texts[0].starts_with("a film of many words many") && texts[0].ends_with('…'), "{texts:?}");
    assert_eq!((texts[0].chars().count(), &texts[1..]), (121, &["bad | `film`", "fine book", "poor book"][..]));
    // Three of them where a page is not at hand.
    let terminal = output::terminal(&view, false);
    assert!(terminal.contains("  row 1: bad | `film`\n    right no, before no no no, now yes yes yes\n"), "{terminal}");
    assert!(terminal.contains("fine book") && !terminal.contains("poor book"), "{terminal}");
    let markdown = output::markdown(&view);
    assert!(
        markdown.contains("- row 1: `bad | 'film'`; right `no`, before `no no no`, now `yes yes yes`\n"),
        "{markdown}"
    );
    assert!(markdown.contains("fine book") && !markdown.contains("poor book"), "{markdown}");
}

#[tokio::test]
async fn rows_that_are_other_ones_by_now_are_left_without_a_text_and_that_is_said() {
    let world = World::new();
    let (mut view, night) = told(&world).await;
    view.scores.iter_mut().flat_map(|row| &mut row.flipped).for_each(|flip| flip.text = None);
    world.rows(
        "test.parquet",
        &["another film", "bad film", "fine book", "poor book"],
        &["good", "bad", "good", "bad"],
    );
    texts::show(&mut view, &night).await;
    std::fs::remove_file(world.path("test.parquet")).unwrap();
    texts::show(&mut view, &night).await;
    let said: Vec<&str> = view.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(said[0], "has its rows without their texts: they are other ones by now");
    assert!(said[1].starts_with("has its rows without their texts: task mood: ") && said.len() == 2, "{said:?}");
    assert!(view.scores.iter().flat_map(|row| &row.flipped).all(|flip| flip.text.is_none()));
    assert!(!view.problems.iter().any(|problem| problem.fails));
}
