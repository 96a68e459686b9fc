//! `template build`: what a Dockerfile asks for, as steps that the engine takes.
//!
//! ```text
//!  Dockerfile ─ recipe ─ steps, each with all that it needs ─ key of its content ─ taken, or found
//!                         ▲
//!  directory ── context ──┘ files by .dockerignore, their digest, their tar
//! ```
//!
//! Nothing here talks to the engine.

pub(crate) mod context;
mod expand;
mod ignore;
mod path;
pub(crate) mod recipe;

use std::path::PathBuf;

/// Why a build cannot be begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// A line of the file.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The file as a whole.
    #[error("{0}")]
    Recipe(String),
    /// A file of the context.
    #[error("{operation} \"{path}\": {source}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The pattern of a file.
    #[error("the pattern \"{pattern}\" cannot be used: {why}")]
    Pattern {
        /// It.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
}
