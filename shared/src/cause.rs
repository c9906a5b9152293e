//! An error with its causes in one line, each said once.
//!
//! The rule of this workspace: an error's own words are whole, so they hold what the cause says, and then the cause is
//! no `source()` (`tests/tests/messages.rs` keeps it so). Errors of libraries keep either rule or both; whoever prints an
//! error that may be one of theirs, or a context on top of one, prints it through [`told`].

use std::error::Error;

/// The error's words, and those of its causes that were not said yet.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    fn chain(words: &[&'static str]) -> Said {
        let (first, rest) = words.split_first().expect("there are words");
        Said(first, (!rest.is_empty()).then(|| Box::new(chain(rest))))
    }

    #[test]
    fn each_cause_is_said_once() {
        assert_eq!(
            told(&chain(&["cannot read x", "no such file (os error 2)"])),
            "cannot read x: no such file (os error 2)"
        );
        assert_eq!(told(&chain(&["x: no such file", "no such file"])), "x: no such file");
        assert_eq!(told(&chain(&["starting y", "x: gone; try again", "gone"])), "starting y: x: gone; try again");
    }
}
