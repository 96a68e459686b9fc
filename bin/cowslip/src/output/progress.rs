//! Progress of an import: a bar or a spinner on a terminal, nothing otherwise.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bar of a layer.
const LAYER: &str = "  {msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}";
/// How often the spinner turns while nothing else changes.
const TICK: Duration = Duration::from_millis(120);

/// Shows how far an import is; gone when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    all: MultiProgress,
    bar: ProgressBar,
    /// Of layers that are on their way, by their digests.
    layers: RefCell<HashMap<String, ProgressBar>>,
}

impl Progress {
    /// For a source of so many bytes, where that is known.
    pub(crate) fn new(shown: bool, total: Option<u64>) -> Self {
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let all = MultiProgress::with_draw_target(target);
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let bar = all.add(bar);
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
        Self {
            all,
            bar,
            layers: RefCell::default(),
        }
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

impl Progress {
    /// How far the download of a layer is: a bar for each, gone when it is whole.
    pub(crate) fn layer(&self, digest: &str, bytes: u64, total: u64) {
        let mut layers = self.layers.borrow_mut();
        if bytes >= total {
            if let Some(bar) = layers.remove(digest) {
                bar.finish_and_clear();
            }
            return;
        }
        let bar = layers.entry(digest.to_owned()).or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            let bar = self.all.add(bar);
            if let Ok(style) = ProgressStyle::with_template(LAYER) {
                bar.set_style(style.progress_chars("=> "));
            }
            let digits = digest.split(':').next_back().unwrap_or(digest);
            bar.set_message(crate::exit::one_line(digits.get(..12).unwrap_or(digits)));
            bar
        });
        bar.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        for bar in self.layers.borrow().values() {
            bar.finish_and_clear();
        }
        self.bar.finish_and_clear();
    }
}
