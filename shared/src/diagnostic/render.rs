//! Shows diagnostics to people (as rustc does) and to programs (as JSON), with line and column.
//!
//! The text of a secret that stands in a job file by mistake is never shown: its place is starred out in every line
//! that is quoted. Must never fail: a span outside the text is moved into it.

use std::{borrow::Cow, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use super::{Diagnostic, SECRET, Severity};

/// A place in a text: both numbers count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// The place of a byte offset; an offset behind the end is the end.
pub fn position(text: &str, offset: usize) -> Position {
    let before = &text[..boundary(text, offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

/// `3 errors, 1 warning in jobs/x.toml`; empty when there is nothing to report.
pub fn summary(file_name: &str, diagnostics: &[Diagnostic]) -> String {
    let count = |severity, word: &str| match diagnostics.iter().filter(|d| d.severity == severity).count() {
        0 => None,
        1 => Some(format!("1 {word}")),
        n => Some(format!("{n} {word}s")),
    };
    let parts: Vec<String> =
        [count(Severity::Error, "error"), count(Severity::Warning, "warning")].into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!("{} in {file_name}", parts.join(", ")) }
}

/// All diagnostics as rustc shows them, and a last line that counts them; empty when there are none.
///
/// `text` is the job file; without it (an empty text) places are left out. `color` writes ANSI escapes.
pub fn render(text: &str, file_name: &str, diagnostics: &[Diagnostic], color: bool) -> String {
    if diagnostics.is_empty() {
        return String::new();
    }
    let source = without_secrets(text, diagnostics);
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut shown = String::new();
    for diagnostic in diagnostics {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code.as_str());
        let place = diagnostic.span.as_ref().filter(|_| !text.is_empty());
        let mut group = match place {
            Some(span) => title.element(
                Snippet::source(source.as_ref())
                    .path(file_name)
                    .annotation(AnnotationKind::Primary.span(first_line(&source, span))),
            ),
            None => title.element(Origin::path(file_name)),
        };
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        shown.push_str(&renderer.render(&[group]));
        shown.push_str("\n\n");
    }
    shown.push_str(&summary(file_name, diagnostics));
    shown.push('\n');
    shown
}

/// All diagnostics as a JSON list of `{code, severity, message, help, file, line, column, end_line, end_column}`;
/// the four numbers are null for a problem without a place.
pub fn to_json(text: &str, file_name: &str, diagnostics: &[Diagnostic]) -> serde_json::Value {
    let entry = |diagnostic: &Diagnostic| {
        let span = diagnostic.span.as_ref();
        let start = span.map(|span| position(text, span.start));
        let end = span.map(|span| position(text, span.end));
        serde_json::json!({
            "code": diagnostic.code,
            "severity": diagnostic.severity,
            "message": diagnostic.message,
            "help": diagnostic.help,
            "file": file_name,
            "line": start.map(|place| place.line),
            "column": start.map(|place| place.column),
            "end_line": end.map(|place| place.line),
            "end_column": end.map(|place| place.column),
        })
    };
    diagnostics.iter().map(entry).collect()
}

/// The nearest character boundary at or before an offset.
fn boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// A span cut to its first line, so that a long table or text is not quoted in full.
fn first_line(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = boundary(text, span.start);
    let end = boundary(text, span.end).max(start);
    let line_end = text[start..end].find(['\n', '\r']).map_or(end, |at| start + at);
    start..line_end
}

/// The text with every secret starred out, byte by byte so that all spans stay right.
fn without_secrets<'t>(text: &'t str, diagnostics: &[Diagnostic]) -> Cow<'t, str> {
    let mut masked = Cow::Borrowed(text);
    let secrets = diagnostics.iter().filter(|diagnostic| diagnostic.code == SECRET);
    for span in secrets.filter_map(|diagnostic| diagnostic.span.as_ref()) {
        let (start, end) = (boundary(text, span.start), boundary(text, span.end));
        if start < end {
            let cover: String = text[start..end].bytes().map(|b| if b == b'\n' { '\n' } else { '*' }).collect();
            masked.to_mut().replace_range(start..end, &cover);
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"é\"\nepoch = 3\ntoken = \"hf_abcdefghijklmnopqrst\"\n";

    #[test]
    fn places_count_lines_and_characters_from_one() {
        assert_eq!(position(TEXT, 0), Position { line: 1, column: 1 });
        assert_eq!(position(TEXT, TEXT.find("epoch").unwrap()), Position { line: 2, column: 1 });
        let behind_accent = TEXT.find("é").unwrap() + "é".len();
        assert_eq!(position(TEXT, behind_accent), Position { line: 1, column: 10 });
        assert_eq!(position(TEXT, behind_accent - 1), Position { line: 1, column: 9 });
        assert_eq!(position(TEXT, 10_000), Position { line: 4, column: 1 });
    }

    #[test]
    fn a_diagnostic_is_shown_as_rustc_does() {
        let at = TEXT.find("epoch").unwrap();
        let problems = [
            Diagnostic::error("unknown-key", "`epoch` is not a key").at(at..at + 5).help("did you mean `epochs`?"),
            Diagnostic::warning("no-effect", "nothing happens"),
        ];
        insta::assert_snapshot!(render(TEXT, "jobs/x.toml", &problems, false));
        let colored = render(TEXT, "jobs/x.toml", &problems, true);
        assert!(colored.contains("\u{1b}["), "{colored:?}");
        assert_eq!(render(TEXT, "jobs/x.toml", &[], false), "");
    }

    #[test]
    fn a_secret_is_starred_out_in_every_quoted_line() {
        let value = TEXT.find("\"hf_").unwrap();
        let problems = [
            Diagnostic::error("unknown-key", "`token` is not a key").at(TEXT.find("token").unwrap()..value - 3),
            Diagnostic::error(SECRET, "a secret stands in the file").at(value..TEXT.len() - 1),
        ];
        let shown = render(TEXT, "x.toml", &problems, false);
        assert!(shown.contains("token = ****") && !shown.contains("hf_"), "{shown}");
    }

    #[test]
    fn spans_outside_the_text_are_moved_into_it() {
        for span in [5000..6000, 8..9, Range { start: 9, end: 8 }, TEXT.len()..TEXT.len()] {
            let problems = [Diagnostic::error("syntax", "odd").at(span), Diagnostic::error(SECRET, "odd").at(9..9000)];
            assert!(render(TEXT, "x.toml", &problems, false).ends_with("2 errors in x.toml\n"));
            assert_eq!(to_json(TEXT, "x.toml", &problems)[0]["code"], "syntax");
        }
    }

    #[test]
    fn json_has_line_and_column() {
        let at = TEXT.find("epoch").unwrap();
        let problem = Diagnostic::error("unknown-key", "m").at(at..at + 5);
        let json = to_json(TEXT, "x.toml", &[problem, Diagnostic::warning("w", "m")]);
        assert_eq!((&json[0]["line"], &json[0]["column"], &json[0]["end_column"]), (&2.into(), &1.into(), &6.into()));
        assert_eq!((&json[0]["severity"], &json[1]["line"]), (&"error".into(), &serde_json::Value::Null));
    }
}
