//! Whether a Firecracker has its seccomp filters. It applies what was built into it, and some builds have an empty
//! filter in them: debug builds, and builds for glibc. Nothing else shows the difference.

use std::path::Path;

use super::program;
use crate::VmmError;

/// Its thread that answers the API: the first to get its filter, before it answers anything.
const API_THREAD: &str = "fc_api";
/// What the kernel calls a filter, in a thread's status.
const FILTER: &str = "2";

/// Refuses the process `pid`, which answers its API, where that runs without a filter.
pub(super) fn require(pid: u32, firecracker: &Path) -> Result<(), VmmError> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let statuses = std::fs::read_dir(tasks)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    if filtered(statuses) {
        return Ok(());
    }
    Err(program::unusable(
        firecracker,
        "it runs without a seccomp filter, as builds for glibc and debug builds do: use a release of \
         Firecracker, or allow it with require_seccomp = false in the configuration's [machine]",
    ))
}

/// Whether the API's thread is among those with these statuses, with a filter.
fn filtered(statuses: impl IntoIterator<Item = String>) -> bool {
    let is = |status: &str, field: &str, value: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(field));
        found.is_some_and(|found| found.trim() == value)
    };
    statuses
        .into_iter()
        .any(|status| is(&status, "Name:", API_THREAD) && is(&status, "Seccomp:", FILTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_answers_counts() {
        let status = |name, mode| format!("Name:\t{name}\nSeccomp:\t{mode}\nSeccomp_filters:\t1\n");
        assert!(filtered([status("firecracker", 0), status("fc_api", 2)]));
        assert!(!filtered([status("firecracker", 2), status("fc_api", 0)]));
        assert!(!filtered([status("firecracker", 2)]));
        assert!(!filtered([]));
    }

    #[test]
    fn a_process_without_one_is_refused() {
        let error = require(std::process::id(), Path::new("/usr/bin/firecracker"));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("/usr/bin/firecracker") && error.contains("require_seccomp"),
            "{error}"
        );
    }
}
