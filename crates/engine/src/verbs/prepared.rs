//! `doctor`'s look at what `host prepare` would do.

use cowslip_host::prepare::{Line, Outcome, Part, Preparation, Roots};
use cowslip_host::process::is_root;
use cowslip_model::api::{Check, CheckStatus};

use super::doctor::check;
use crate::config::MonitorChoice;
use crate::{Config, Engine};

/// Objects of one step that are named; the others are counted.
const NAMED: usize = 3;

impl Engine {
    pub(super) fn check_prepared(&self) -> Check {
        let preparation = Preparation::new(Roots::default(), self.site.layout.clone());
        judge(&preparation.look(), &Host::of(&self.config))
    }
}

/// What decides how much something that is missing matters.
#[derive(Debug, Clone, Copy)]
struct Host {
    /// Firecracker and its jailer read caches in sysfs there.
    reads_caches: bool,
    /// Only root uses devices.
    root: bool,
}

impl Host {
    fn of(config: &Config) -> Self {
        Self {
            reads_caches: cfg!(target_arch = "aarch64")
                && config.machine.vmm != MonitorChoice::Qemu,
            root: is_root(),
        }
    }

    fn weigh(self, line: &Line) -> CheckStatus {
        match line.part {
            Part::CacheAttributes if self.reads_caches => CheckStatus::Failed,
            Part::Modules if self.root => CheckStatus::Warning,
            Part::Limits => CheckStatus::Warning,
            Part::CacheAttributes | Part::Modules => CheckStatus::Ok,
        }
    }
}

fn judge(lines: &[Line], host: &Host) -> Check {
    let missing = |part: Part| {
        lines.iter().filter(move |line| {
            line.part == part && matches!(line.outcome, Outcome::Needed | Outcome::Failed)
        })
    };
    let parts = [Part::CacheAttributes, Part::Modules, Part::Limits];
    let status = parts
        .iter()
        .flat_map(|&part| missing(part))
        .map(|line| host.weigh(line))
        .max_by_key(|status| match status {
            CheckStatus::Ok => 0,
            CheckStatus::Warning => 1,
            CheckStatus::Failed => 2,
        });
    let Some(status) = status else {
        let detail = "nothing is missing that it could add";
        return check("host prepare", CheckStatus::Ok, detail, None);
    };
    let mut said: Vec<String> = parts
        .iter()
        .filter_map(|&part| in_words(part, missing(part).collect()))
        .collect();
    if status == CheckStatus::Ok {
        said.push("of no harm to this engine".to_owned());
    }
    check(
        "host prepare",
        status,
        said.join("; "),
        Some("cowslip host prepare"),
    )
}

/// "modules: tun not loaded"; none where nothing is missing.
fn in_words(part: Part, missing: Vec<&Line>) -> Option<String> {
    let named = missing.iter().take(NAMED);
    let mut words: Vec<String> = named
        .map(|line| format!("{} {}", line.object, line.detail))
        .collect();
    let others = missing.len().saturating_sub(NAMED);
    if others > 0 {
        words.push(format!("and {others} more"));
    }
    (!missing.is_empty()).then(|| format!("{}: {}", part.as_str(), words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: Host = Host {
        reads_caches: false,
        root: true,
    };

    fn line(part: Part, object: &str, outcome: Outcome, detail: &str) -> Line {
        Line {
            part,
            object: object.to_owned(),
            outcome,
            detail: detail.to_owned(),
        }
    }

    fn cache(index: u32) -> Line {
        let object = format!("cpu0/index{index}");
        line(
            Part::CacheAttributes,
            &object,
            Outcome::Needed,
            "lacks size (32K)",
        )
    }

    #[test]
    fn a_host_that_lacks_nothing_is_not_told_to_do_anything() {
        let lines = [
            line(
                Part::CacheAttributes,
                "all (4)",
                Outcome::Ready,
                "have size",
            ),
            line(Part::Modules, "tun", Outcome::Impossible, "not built in"),
            line(
                Part::Limits,
                "fs.aio-max-nr",
                Outcome::Unneeded,
                "no such limit",
            ),
        ];
        let check = judge(&lines, &X86);
        assert_eq!((check.status, check.mend), (CheckStatus::Ok, None));
    }

    #[test]
    fn caches_are_a_note_where_nobody_reads_them_and_a_failure_where_firecracker_does() {
        let lines: Vec<Line> = (0..5).map(cache).collect();
        let note = judge(&lines, &X86);
        assert_eq!(note.status, CheckStatus::Ok);
        assert_eq!(note.mend.as_deref(), Some("cowslip host prepare"));
        assert_eq!(
            note.detail,
            "cache-attributes: cpu0/index0 lacks size (32K), cpu0/index1 lacks size (32K), \
             cpu0/index2 lacks size (32K), and 2 more; of no harm to this engine"
        );
        let arm = Host {
            reads_caches: true,
            ..X86
        };
        assert_eq!(judge(&lines, &arm).status, CheckStatus::Failed);
    }

    #[test]
    fn modules_matter_to_root_and_limits_to_everybody() {
        let user = Host { root: false, ..X86 };
        let module = [line(Part::Modules, "tun", Outcome::Needed, "not loaded")];
        let check = judge(&module, &X86);
        assert_eq!(check.status, CheckStatus::Warning);
        assert_eq!(check.detail, "modules: tun not loaded");
        assert_eq!(judge(&module, &user).status, CheckStatus::Ok);
        let limit = [
            cache(0),
            line(
                Part::Limits,
                "kernel.pid_max",
                Outcome::Needed,
                "1 → 2: threads",
            ),
        ];
        assert_eq!(judge(&limit, &user).status, CheckStatus::Warning);
    }
}
