//! Logs: to stderr alone, since data goes to stdout. Tokens and credentials never come here.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends logs and panics to stderr; `GRAFTWORK_LOG` filters them, by default at `level`.
pub(crate) fn start(format: LogFormat, level: &str) {
    let filter = EnvFilter::builder().with_env_var("GRAFTWORK_LOG").try_from_env();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = crate::pool::panic_message(panic.payload());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), %place, "panic: {message}");
    }));
}
