//! What is wrong with what the user wrote: values with a code, a place, what was found, what is allowed, and help.

mod render;

use std::{fmt, ops::Range};

pub use render::{Position, position, render, summary, to_json};
use serde::{Deserialize, Serialize};

/// The code of a secret that stands in the file itself; what stands at its span is never shown.
pub const SECRET: &str = "secret-in-file";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The job can run.
    Warning,
    /// The job cannot run.
    Error,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// A stable code such as `unknown-key`.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with the value and the bound; lower case, no full stop.
    pub message: String,
    /// Byte range in the job file, where there is one.
    pub span: Option<Range<usize>>,
    /// How to mend it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), severity: Severity::Error, message: message.into(), span: None, help: None }
    }

    /// A warning without a place.
    pub fn warning(code: &str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// At a byte range of the job file.
    pub fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    /// With a mend.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)
    }
}
