//! Whatever the text, parsing ends with a job or with errors, and each problem can be shown.

use proptest::prelude::*;

use super::{BASE, FOLDER, table::cases};
use crate::{
    diagnostic::{Severity, render, to_json},
    job::parse,
};

const TOUR: &str = include_str!("../../../../jobs/tour.toml");

fn holds(text: &str) {
    let parsed = parse(text, std::path::Path::new(FOLDER));
    let errors = parsed.diagnostics.iter().filter(|problem| problem.severity == Severity::Error).count();
    assert_eq!(parsed.job.is_none(), errors > 0, "{text:?}: {:?}", parsed.diagnostics);
    for span in parsed.diagnostics.iter().filter_map(|problem| problem.span.clone()).chain(parsed.spans.0.into_values())
    {
        assert!(span.start <= span.end && text.get(span.clone()).is_some(), "{text:?}: {span:?}");
    }
    let shown = render(text, "job.toml", &parsed.diagnostics, true);
    assert_eq!(shown.is_empty(), parsed.diagnostics.is_empty());
    assert_eq!(to_json(text, "job.toml", &parsed.diagnostics).as_array().map(Vec::len), Some(parsed.diagnostics.len()));
}

/// Values of every TOML type, sound and unsound.
const VALUES: [&str; 22] = [
    "true",
    "0",
    "1",
    "-1",
    "3",
    "0.5",
    "-0.0",
    "1e400",
    "nan",
    "99999999999999999999",
    "0xff",
    "\"\"",
    "\"spam\"",
    "\"hf://a/b\"",
    "\"a/b\"",
    "\"linear\"",
    "[]",
    "[1, 0]",
    "[\"spam\", \"tone\"]",
    "{}",
    "{ kind = 1 }",
    "1979-05-27",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        holds(&text);
    }

    #[test]
    fn any_text_of_tomls_signs_is_answered(text in r#"[\[\]{}=."'a-c#\n, 0-9\\é]{0,80}"#) {
        holds(&text);
        holds(&format!("{BASE}{text}"));
    }

    #[test]
    fn a_damaged_job_is_answered(
        (start, length) in (0..TOUR.len(), 0usize..60),
        patch in r#"[\[\]{}=."'a-z#\n, 0-9\\é]{0,12}"#,
    ) {
        let boundary = |at: usize| (at..=TOUR.len()).find(|at| TOUR.is_char_boundary(*at)).unwrap();
        let (start, end) = (boundary(start), boundary((start + length).min(TOUR.len())));
        holds(&format!("{}{patch}{}", &TOUR[..start], &TOUR[end..]));
    }

    #[test]
    fn any_value_of_any_key_is_answered(index in 0usize..10_000, value in 0..VALUES.len()) {
        let cases = cases();
        holds(&cases[index % cases.len()].job(Some(VALUES[value])));
    }

    #[test]
    fn any_two_values_together_are_answered(
        (first, second) in (0usize..10_000, 0usize..10_000),
        (one, two) in (0..VALUES.len(), 0..VALUES.len()),
    ) {
        let cases = cases();
        let dotted = |index: usize, value: usize| {
            format!("{} = {}\n", cases[index % cases.len()].path, VALUES[value])
        };
        holds(&format!("{}{}{BASE}", dotted(first, one), dotted(second, two)));
        holds(&format!("{}{}", dotted(first, one), dotted(second, two)));
    }
}

#[test]
fn a_file_of_windows_is_read() {
    holds(&BASE.replace('\n', "\r\n"));
    holds(&format!("\u{feff}{BASE}"));
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    holds(&format!("name = {}", "[".repeat(5000)));
    holds(&format!("tasks = {}1{}", "{ a = ".repeat(60), " }".repeat(60)));
    holds(&format!("{} = 1", vec!["tasks"; 3000].join(".")));
}
