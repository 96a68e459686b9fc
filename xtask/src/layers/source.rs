//! Unsafe code: the compiler denies it everywhere, so a file that has any must first allow it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{LayersError, Package, Violation};

/// Where `unsafe_code` may be allowed: the host crate, and one module of the agent, which as PID 1
/// makes system calls that no safe library offers.
pub(super) const UNSAFE_PLACES: &[&str] = &["crates/host", "bin/cowslip-agent/src/sys"];

const LINT: &str = "unsafe_code";

/// Finds attributes that allow unsafe code elsewhere.
pub(super) fn check(root: &Path, packages: &[Package]) -> Result<Vec<Violation>, LayersError> {
    let mut found = Vec::new();
    for package in packages {
        let dir = package.manifest_path.parent().unwrap_or(root);
        let mut files = Vec::new();
        collect(dir, &mut files)?;
        for path in files {
            let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
            if is_allowed(&relative) {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|e| LayersError::Read(path.clone(), e))?;
            let lines = lines_that_allow(&text).into_iter();
            found.extend(lines.map(|line| Violation::AllowsUnsafe {
                file: relative.clone(),
                line,
            }));
        }
    }
    Ok(found)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), LayersError> {
    let failed = |error| LayersError::Read(dir.to_owned(), error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn is_allowed(relative: &Path) -> bool {
    let inside =
        |place: &&str| relative.starts_with(place) || relative == Path::new(&format!("{place}.rs"));
    UNSAFE_PLACES.iter().any(inside)
}

/// Numbers of lines on which an attribute that lowers the lint names it. Comments do not count.
fn lines_that_allow(text: &str) -> Vec<usize> {
    let uncommented = |line: &str| line.split("//").next().unwrap_or("").to_owned();
    let code: Vec<String> = text.lines().map(uncommented).collect();
    let code = code.join("\n");
    let lowers = |at: &usize| {
        let before = &code[..*at];
        // The attribute that is open here: nothing has closed it since it began.
        let attribute = before
            .rfind('#')
            .map(|start| &before[start..])
            .unwrap_or("");
        let attribute: String = attribute.split_whitespace().collect();
        (attribute.starts_with("#[") || attribute.starts_with("#!["))
            && !attribute.contains(']')
            && ["allow(", "expect(", "warn("]
                .iter()
                .any(|level| attribute.contains(level))
    };
    let mentions = code.match_indices(LINT).map(|(at, _)| at).filter(lowers);
    mentions
        .map(|at| code[..at].matches('\n').count() + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The lint is put in here, so that this file does not find itself.
    fn allows(text: &str) -> Vec<usize> {
        lines_that_allow(&text.replace("LINT", LINT))
    }

    #[test]
    fn every_way_to_allow_it_is_seen() {
        assert_eq!(allows("fn a() {}\n#![allow(LINT)]\n"), [2]);
        assert_eq!(
            allows("  #[ expect(dead_code, LINT, reason = \"x\") ]"),
            [1]
        );
        assert_eq!(allows("#![cfg_attr(test, allow(LINT))]"), [1]);
        assert_eq!(
            allows("#[allow(\n    dead_code, // why\n    LINT,\n)]"),
            [3]
        );
    }

    #[test]
    fn talk_of_it_is_not_counted() {
        assert!(allows("// #![allow(LINT)]\nlet s = \"LINT\";").is_empty());
        assert!(
            allows("#![deny(LINT)]\n#![forbid(LINT)]\n#[allow(dead_code)] fn LINT() {}").is_empty()
        );
    }

    #[test]
    fn only_the_host_and_one_module_of_the_agent_may() {
        for path in [
            "crates/host/src/pidfd.rs",
            "bin/cowslip-agent/src/sys/mount.rs",
        ] {
            assert!(is_allowed(Path::new(path)), "{path}");
        }
        assert!(is_allowed(Path::new("bin/cowslip-agent/src/sys.rs")));
        for path in [
            "crates/hostile/src/lib.rs",
            "bin/cowslip-agent/src/system.rs",
        ] {
            assert!(!is_allowed(Path::new(path)), "{path}");
        }
    }
}
