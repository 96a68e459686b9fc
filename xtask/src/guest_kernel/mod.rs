//! Builds the purpose-built guest kernel from a distribution's source archive and the fragment in
//! `guest-kernel/`, once for each combination of the two and the compiler.
//!
//! ```text
//!  <cache>/guest-kernel/<key>/{bzImage,vmlinux,config}    published by one rename
//!  <cache>/guest-kernel/.build/                           work in progress, under the lock
//!  <cache>/guest-kernel/.lock
//! ```
//!
//! The cache lies outside the source tree and outside cargo's target directory, so that neither
//! `git clean` nor `cargo clean` costs a kernel build.

mod build;
mod cache;
mod config;
mod progress;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use cache::{Cache, Key};
use progress::Steps;

/// Why there is no guest kernel.
#[derive(Debug, thiserror::Error)]
enum GuestKernelError {
    #[error("no kernel source: \"{0}\" is missing; install Debian's package linux-source-6.12")]
    NoSource(String),
    #[error("\"{tool}\" is missing: install it, or run \"scripts/setup --guest-kernel\"")]
    NoTool { tool: &'static str },
    #[error("cannot {action} \"{path}\"")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("neither COWSLIP_CACHE, XDG_CACHE_HOME nor HOME is set: nowhere to keep the kernel")]
    NoCacheDir,
    #[error("\"{command}\" failed: {status}; its last words:\n{tail}")]
    Command {
        command: String,
        status: std::process::ExitStatus,
        tail: String,
    },
    #[error("the kernel's configuration dropped what the fragment asks for:\n{}", .0.join("\n"))]
    Dropped(Vec<String>),
    #[error("line {line} of the fragment is neither an option nor a comment: \"{text}\"")]
    Fragment { line: usize, text: String },
}

/// Builds the kernel if it is not there, and prints its directory.
pub(crate) fn run(source: Option<PathBuf>, only_cached: bool) -> crate::Outcome {
    let started = Instant::now();
    let fragment_path = crate::root().join("guest-kernel/config.fragment");
    let fragment =
        std::fs::read_to_string(&fragment_path).map_err(|source| GuestKernelError::Io {
            action: "read",
            path: fragment_path,
            source,
        })?;
    let fragment = config::Fragment::parse(fragment)?;
    let source = source::find(source)?;
    let compiler = build::compiler()?;
    let key = Key::of(fragment.text(), &source, &compiler)?;
    let cache = Cache::open()?;
    if let Some(dir) = cache.find(&key) {
        println!("{}", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    if only_cached {
        return Ok(ExitCode::FAILURE);
    }
    build::check_tools()?;
    let _lock = cache.lock()?;
    // Another build may have finished while this one waited for the lock.
    if let Some(dir) = cache.find(&key) {
        println!("{}", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let work = cache.work_dir()?;
    let steps = Steps::new();
    let product = build::build(&work, &source, &fragment, &steps)?;
    let dir = cache.publish(&key, &product)?;
    steps.done(started.elapsed());
    println!("{}", dir.display());
    Ok(ExitCode::SUCCESS)
}
