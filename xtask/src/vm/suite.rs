//! The tests that need such a machine: `tests/vm`, and what of `tests/e2e` is asked for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::machine::{Machine, target};
use super::{VmError, asset};

/// The package that only runs in the machine.
const PACKAGE: &str = "cowslip-vm-tests";

/// Runs the test programs of the package (or of `--package NAME`) with the remaining arguments.
pub(super) fn run(machine: &Machine, arguments: &[String]) -> Result<u8, VmError> {
    let (package, rest) = match arguments {
        [flag, name, rest @ ..] if flag == "-p" || flag == "--package" => (name.as_str(), rest),
        rest => (PACKAGE, rest),
    };
    let program = test_program(package)?;
    let staged = target().join("test-bin");
    let agent = asset("COWSLIP_TEST_AGENT")?;
    let directory = program.parent().map_or_else(PathBuf::new, Path::to_owned);
    let name = program
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // Only the one program: cargo's directory holds gigabytes.
    let place = target().join("vm").join("programs");
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place).map_err(VmError::file("make", &place))?;
    let copy = place.join(&name);
    std::fs::copy(directory.join(&name), &copy).map_err(VmError::file("copy", &copy))?;
    let variables = [
        ("COWSLIP_TEST_BIN", staged.join("cowslip")),
        ("COWSLIP_TEST_AGENT", staged.join("cowslip-agent")),
    ]
    .map(|(name, path)| (name.to_owned(), path.display().to_string()));
    let variables: Vec<(String, String)> = variables
        .into_iter()
        // What the end-to-end tests run on inside.
        .chain([
            ("COWSLIP_TEST_BACKEND".to_owned(), "dm".to_owned()),
            ("COWSLIP_TEST_ACCELERATOR".to_owned(), "kvm".to_owned()),
        ])
        .collect();
    if !agent.exists() {
        return Err(VmError::NoAsset("COWSLIP_TEST_AGENT"));
    }
    let mut command = vec![copy.display().to_string()];
    if !rest.iter().any(|word| word.starts_with("--test-threads")) {
        command.push("--test-threads=2".to_owned());
    }
    command.extend(rest.iter().cloned());
    machine.run_with(&command, &[place], &variables, false)
}

/// Builds the test program of a package and gives its path.
fn test_program(package: &str) -> Result<PathBuf, VmError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["test", "--quiet", "--no-run", "--package", package])
        .args(["--test", "suite", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| VmError::Start {
            program: "cargo".to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "suite")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.ok_or_else(|| VmError::Failed {
        program: format!("cargo test --no-run --package {package}"),
        output: "it built no test program \"suite\"".to_owned(),
    })
}
