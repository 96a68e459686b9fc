//! Progress of an import: a bar or a spinner on a terminal, nothing otherwise.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the spinner turns while nothing else changes.
const TICK: Duration = Duration::from_millis(120);

/// Shows how far an import is; gone when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// For a source of so many bytes, where that is known.
    pub(crate) fn new(shown: bool, total: Option<u64>) -> Self {
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(total, target);
        let template = match total {
            Some(_) => {
                "{spinner} {msg:10} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {prefix}"
            }
            None => "{spinner} {msg:10} {bytes} {binary_bytes_per_sec} {prefix}",
        };
        // The templates are constants; a default bar is better than none should one be wrong.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message("reading");
        if shown {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// A handle that counts bytes read from the source.
    pub(crate) fn reader(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// What the engine reports. `counts` says whether its bytes are the bar's, where nothing is read
    /// here.
    pub(crate) fn report(&self, phase: &str, entries: u64, bytes: u64, counts: bool) {
        self.bar.set_message(crate::exit::one_line(phase));
        self.bar.set_prefix(format!("{entries} entries"));
        if counts {
            self.bar.set_position(bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
