//! The log, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::exit::Failure;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Begins the log, with what this filter lets through.
pub(crate) fn init(level: &str, format: Format) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Failure::usage(format!("\"{level}\" is no log level: {error}"))
            .hint("use off, error, warn, info, debug or trace")
    })?;
    // A line that cannot be written, on a full disk for one, is lost. Reporting that would be written
    // to the same place, and would end whoever logged.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let result = match format {
        Format::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        Format::Json => builder.json().try_init(),
    };
    result.map_err(|error| Failure::usage(format!("begin the log: {error}")))
}
