//! Whether a Firecracker has its seccomp filters. It applies what was built into it, and some builds have an empty
//! filter in them: debug builds, and builds for glibc. Nothing else shows the difference.

use std::path::Path;

use cowslip_host::process::thread_has_filter;

use super::program;
use crate::VmmError;

/// Its thread that answers the API: the first to get its filter, before it answers anything.
const API_THREAD: &str = "fc_api";

/// Refuses the process `pid`, which answers its API, where that runs without a filter. Blocking.
pub(super) fn require(pid: u32, firecracker: &Path) -> Result<(), VmmError> {
    let why = match thread_has_filter(pid, API_THREAD)? {
        Some(true) => return Ok(()),
        Some(false) => {
            "it runs without a seccomp filter, as builds for glibc and debug builds do: use a release of \
             Firecracker, or allow it with require_seccomp = false in the configuration's [machine]"
        }
        None => {
            "the thread that answers has ended, or has another name than in any version that is known, so \
             nothing shows that it has a seccomp filter: use a release of Firecracker"
        }
    };
    Err(program::unusable(firecracker, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_one_is_refused() {
        let told = |name: &str| {
            let named = std::thread::Builder::new().name(name.to_owned());
            let asked =
                named.spawn(|| require(std::process::id(), Path::new("/usr/bin/firecracker")));
            asked.unwrap().join().unwrap().unwrap_err().to_string()
        };
        let unfiltered = told(API_THREAD);
        assert!(
            unfiltered.contains("/usr/bin/firecracker") && unfiltered.contains("require_seccomp"),
            "{unfiltered}"
        );
        let unknown = told("another");
        assert!(unknown.contains("nothing shows"), "{unknown}");
    }
}
