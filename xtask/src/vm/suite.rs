//! The tests that need such a machine: `tests/vm`, or those of the packages that are asked for.

use std::fs;
use std::path::{Path, PathBuf};

use super::machine::{Job, quoted};
use super::{VmError, assets, nextest, target, tree};

/// The package that only runs in the machine.
const PACKAGE: &str = "cowslip-vm-tests";
/// What the end-to-end tests run on inside, unless the environment says otherwise. That guests boot on
/// the machine's KVM is for `tests/vm` to show: the engine's own trial has no patience for emulation.
const DEFAULTS: [(&str, &str); 3] = [
    // A suite that leaves devices has failed.
    ("VM_LEAVES_NOTHING", "1"),
    ("COWSLIP_TEST_BACKEND", "dm"),
    ("COWSLIP_TEST_ACCELERATOR", "kvm"),
];

/// Builds the tests, and gives the job that runs them.
pub(super) fn job(arguments: &[String]) -> Result<Job, VmError> {
    let (mut packages, rest) = split(arguments);
    if packages.is_empty() {
        packages.push(PACKAGE.to_owned());
    }
    if packages.iter().any(|package| package == PACKAGE) && assets::monitors()?.len() < 2 {
        eprintln!(
            "vm: SKIPPED: every test of Firecracker. No package has it: name a release's programs by \
             COWSLIP_FIRECRACKER and COWSLIP_JAILER"
        );
    }
    let programs = assets::programs(true)?;
    let mut places = tree::workspace()?;
    let command = if let Some(runner) = nextest::installed() {
        let archive = target().join(format!("vm/{}.tar.zst", packages.join("+")));
        if let Some(directory) = archive.parent() {
            fs::create_dir_all(directory).map_err(VmError::file("make", directory))?;
        }
        nextest::archive(&packages, &archive)?;
        let words = with_nextest(&runner, &archive, &rest);
        places.extend([runner, archive]);
        words
    } else {
        let tests = nextest::programs(&packages)?;
        let words = without_nextest(&tests, &rest);
        places.extend(tests);
        words
    };
    let unset = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    let variables = DEFAULTS.into_iter().filter(unset);
    Ok(Job {
        command,
        places,
        variables: variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        programs,
        interactive: false,
    })
}

/// The packages that arguments of the runner name, and the other arguments.
fn split(arguments: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut packages, mut rest) = (Vec::new(), Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "-p" || word == "--package" {
            packages.extend(words.next().cloned());
        } else if let Some(name) = word.strip_prefix("--package=") {
            packages.push(name.to_owned());
        } else if word == "--" {
            // What follows is the test programs'.
            rest.push(word.clone());
            rest.extend(words.by_ref().cloned());
        } else {
            rest.push(word.clone());
        }
    }
    (packages, rest)
}

fn with_nextest(runner: &Path, archive: &Path, rest: &[String]) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let mut words = vec![text(runner)];
    words.extend(["nextest", "run", "--profile", "vm", "--archive-file"].map(str::to_owned));
    words.extend([text(archive), "--workspace-remap".to_owned()]);
    words.push(text(&crate::root()));
    words.extend(rest.iter().cloned());
    words
}

/// Runs every program, and fails if one did.
fn without_nextest(tests: &[PathBuf], rest: &[String]) -> Vec<String> {
    let run = |test: &PathBuf| {
        let program = quoted(&test.display().to_string());
        format!("{program} \"$@\" || code=$?\n")
    };
    let each: String = tests.iter().map(run).collect();
    let script = format!("code=0\n{each}exit $code");
    let mut words = ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
    words.extend(rest.iter().cloned());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_program_runs_and_a_failure_stays() {
        let tests = ["false", "true"].map(PathBuf::from);
        let words = without_nextest(&tests, &words("--flag"));
        let run = std::process::Command::new(&words[0])
            .args(&words[1..])
            .status();
        assert_eq!(run.unwrap().code(), Some(1));
    }

    #[test]
    fn packages_are_told_from_the_runners_arguments() {
        let (packages, rest) = split(&words("-p a -E test(x) --package=b --package c -- -p d"));
        assert_eq!(packages, words("a b c"));
        assert_eq!(rest, words("-E test(x) -- -p d"));
        assert_eq!(split(&words("name")), (Vec::new(), words("name")));
    }
}
