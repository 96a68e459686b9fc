//! The layers of the workspace, and the check that nothing reaches up.
//!
//! ```text
//!  model ◄─ ledger ◄─ host ◄─┬─ store ◄─┐
//!    ▲                       └─ vmm   ◄─┼─ engine ◄─ server ◄─ cowslip
//!    └──── image ◄─ registry  ◄─────────┤      ▲
//!    └──── network ◄─ resolver ◄────────┤      │
//!    └──── guest, proto ◄───────────────┘      │
//!               ▲                              └─ sim (only for tests)
//!               └─ cowslip-agent            test-parts (only for tests)
//! ```
//!
//! The table below is the design's; the workspace must be a subset of it. It runs as
//! `cargo xtask check-layers` and as an ordinary test.

mod manifest;
mod source;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use serde::Deserialize;

/// A crate of the workspace and those it may depend on.
struct Layer {
    name: &'static str,
    may_use: &'static [&'static str],
}

const fn layer(name: &'static str, may_use: &'static [&'static str]) -> Layer {
    Layer { name, may_use }
}

/// Everything below the engine.
const BELOW_ENGINE: &[&str] = &[
    "cowslip-model",
    "cowslip-ledger",
    "cowslip-host",
    "cowslip-store",
    "cowslip-vmm",
    "cowslip-image",
    "cowslip-registry",
    "cowslip-network",
    "cowslip-resolver",
    "cowslip-guest",
    "cowslip-proto",
];

/// Everything but the simulation, which only tests may use.
const ALL_REAL: &[&str] = &[
    "cowslip-model",
    "cowslip-ledger",
    "cowslip-host",
    "cowslip-store",
    "cowslip-vmm",
    "cowslip-image",
    "cowslip-registry",
    "cowslip-network",
    "cowslip-resolver",
    "cowslip-guest",
    "cowslip-proto",
    "cowslip-engine",
    "cowslip-server",
];

/// What benchmarks may use: they set up what they measure as the tests of the whole do.
const BENCHES: &[&str] = &[
    "cowslip-model",
    "cowslip-ledger",
    "cowslip-host",
    "cowslip-store",
    "cowslip-network",
    "cowslip-proto",
    "cowslip-engine",
    "cowslip-e2e",
];

/// What end-to-end tests may use.
const E2E: &[&str] = &["cowslip-model", "cowslip-test-parts"];

/// What tests of the whole may use beside that.
const TESTS: &[&str] = &[
    "cowslip-model",
    "cowslip-ledger",
    "cowslip-host",
    "cowslip-store",
    "cowslip-engine",
    "cowslip-e2e",
];

const LAYERS: &[Layer] = &[
    layer("cowslip-model", &[]),
    layer("cowslip-ledger", &["cowslip-model"]),
    layer("cowslip-host", &["cowslip-model", "cowslip-ledger"]),
    layer(
        "cowslip-store",
        &["cowslip-model", "cowslip-ledger", "cowslip-host"],
    ),
    layer(
        "cowslip-vmm",
        &["cowslip-model", "cowslip-ledger", "cowslip-host"],
    ),
    layer("cowslip-image", &["cowslip-model"]),
    layer("cowslip-registry", &["cowslip-model", "cowslip-image"]),
    layer("cowslip-network", &["cowslip-model"]),
    layer("cowslip-resolver", &["cowslip-model", "cowslip-network"]),
    layer("cowslip-guest", &["cowslip-model"]),
    layer("cowslip-proto", &["cowslip-model"]),
    layer("cowslip-engine", BELOW_ENGINE),
    layer("cowslip-server", &["cowslip-model", "cowslip-engine"]),
    layer(
        "cowslip-sim",
        &[
            "cowslip-model",
            "cowslip-ledger",
            "cowslip-host",
            "cowslip-store",
            "cowslip-vmm",
            "cowslip-image",
            "cowslip-guest",
            "cowslip-proto",
            "cowslip-engine",
        ],
    ),
    layer("cowslip", ALL_REAL),
    layer("cowslip-agent", &["cowslip-model", "cowslip-proto"]),
    layer("cowslip-test-parts", &[]),
    layer("cowslip-e2e", E2E),
    layer("cowslip-vm-tests", TESTS),
    layer("cowslip-benches", BENCHES),
    layer("xtask", &[]),
];

/// What tests, and only tests, may use from anywhere.
const ONLY_IN_TESTS: [&str; 2] = ["cowslip-sim", "cowslip-test-parts"];

/// Something that the layers forbid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Violation {
    /// A crate that the table does not know.
    Unknown { package: String },
    /// A dependency that the table does not have.
    Reaches {
        package: String,
        dependency: String,
        kind: Kind,
    },
    /// A crate that does not take its lints from the workspace.
    OwnLints { package: String },
    /// A workspace that no longer denies unsafe code.
    UnsafeNotDenied,
    /// Unsafe code allowed where there is no place for it.
    AllowsUnsafe { file: PathBuf, line: usize },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { package } => {
                write!(
                    f,
                    "crate \"{package}\" has no layer: give it one in xtask/src/layers/mod.rs"
                )
            }
            Self::Reaches {
                package,
                dependency,
                kind,
            } => {
                write!(
                    f,
                    "crate \"{package}\" may not have \"{dependency}\" as a {kind}"
                )
            }
            Self::OwnLints { package } => write!(
                f,
                "crate \"{package}\" has its own lints: its Cargo.toml needs \"[lints] workspace = true\""
            ),
            Self::UnsafeNotDenied => {
                write!(
                    f,
                    "the workspace no longer denies \"unsafe_code\" in [workspace.lints.rust]"
                )
            }
            Self::AllowsUnsafe { file, line } => write!(
                f,
                "\"{}\" line {line} allows unsafe code: only {} may",
                file.display(),
                source::UNSAFE_PLACES.join(" and ")
            ),
        }
    }
}

/// How a crate depends on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Normal,
    Dev,
    Build,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "dependency",
            Self::Dev => "dev-dependency",
            Self::Build => "build-dependency",
        })
    }
}

/// What is used of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// Null for an ordinary dependency.
    kind: Option<Kind>,
    /// Set for a path dependency, so for each of the workspace's own.
    path: Option<PathBuf>,
}

/// Why the check could not be made.
#[derive(Debug, thiserror::Error)]
enum LayersError {
    #[error("cannot run \"cargo metadata\"")]
    Run(#[source] std::io::Error),
    #[error("\"cargo metadata\" failed: {0}")]
    Failed(String),
    #[error("\"cargo metadata\" answered in an unknown form")]
    Parse(#[from] serde_json::Error),
    #[error("cannot read \"{0}\"")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("\"{0}\" is not a manifest")]
    Manifest(PathBuf, #[source] Box<toml::de::Error>),
}

/// Runs the check and prints what it finds.
pub(crate) fn run() -> crate::Outcome {
    let found = check_workspace()?;
    for violation in &found {
        eprintln!("{violation}");
    }
    if found.is_empty() {
        println!("the {} crates keep to their layers", LAYERS.len());
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}

fn check_workspace() -> Result<BTreeSet<Violation>, LayersError> {
    let metadata = read_metadata()?;
    let mut found = check_edges(&metadata.packages);
    found.extend(manifest::check(&crate::root(), &metadata.packages)?);
    found.extend(source::check(&crate::root(), &metadata.packages)?);
    Ok(found)
}

fn read_metadata() -> Result<Metadata, LayersError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--offline",
            "--no-deps",
            "--format-version",
            "1",
            "--manifest-path",
        ])
        .arg(crate::root().join("Cargo.toml"))
        .output()
        .map_err(LayersError::Run)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(LayersError::Failed(text.trim().to_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Whether `name` is under `layer`, directly or through others. The table has no circle.
fn is_below(name: &str, layer: &Layer) -> bool {
    let find = |used: &&str| LAYERS.iter().find(|other| other.name == *used);
    layer.may_use.contains(&name)
        || layer
            .may_use
            .iter()
            .filter_map(find)
            .any(|used| is_below(name, used))
}

fn check_edges(packages: &[Package]) -> BTreeSet<Violation> {
    let mut found = BTreeSet::new();
    for package in packages {
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == package.name) else {
            found.insert(Violation::Unknown {
                package: package.name.clone(),
            });
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            let kind = dependency.kind.unwrap_or_default();
            let name = dependency.name.as_str();
            // A test may set up what lies further below; it still may not reach up.
            let for_tests =
                kind == Kind::Dev && (ONLY_IN_TESTS.contains(&name) || is_below(name, layer));
            if !for_tests && !layer.may_use.contains(&name) {
                found.insert(Violation::Reaches {
                    package: package.name.clone(),
                    dependency: dependency.name.clone(),
                    kind,
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<Kind>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<Kind>)| Dependency {
            name: (*name).to_owned(),
            kind: *kind,
            path: Some(PathBuf::from("crates")),
        };
        Package {
            name: name.to_owned(),
            manifest_path: PathBuf::from("Cargo.toml"),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    fn reaches(package: &str, dependency: &str, kind: Kind) -> BTreeSet<Violation> {
        let (package, dependency) = (package.to_owned(), dependency.to_owned());
        BTreeSet::from([Violation::Reaches {
            package,
            dependency,
            kind,
        }])
    }

    #[test]
    fn the_workspace_keeps_to_its_layers() {
        let found = check_workspace().unwrap();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{}", text.join("\n"));
    }

    #[test]
    fn a_crate_that_reaches_up_is_found() {
        let bad = package(
            "cowslip-store",
            &[("cowslip-host", None), ("cowslip-engine", None)],
        );
        assert_eq!(
            check_edges(&[bad]),
            reaches("cowslip-store", "cowslip-engine", Kind::Normal)
        );
        let bad = package("cowslip-model", &[("cowslip-ledger", Some(Kind::Build))]);
        assert_eq!(
            check_edges(&[bad]),
            reaches("cowslip-model", "cowslip-ledger", Kind::Build)
        );
        let bad = package("cowslip-image", &[("cowslip-ledger", Some(Kind::Dev))]);
        assert_eq!(
            check_edges(&[bad]),
            reaches("cowslip-image", "cowslip-ledger", Kind::Dev)
        );
    }

    #[test]
    fn a_test_may_set_up_what_lies_further_below() {
        let good = package("cowslip-server", &[("cowslip-store", Some(Kind::Dev))]);
        assert!(check_edges(&[good]).is_empty());
        let bad = package("cowslip-server", &[("cowslip-store", None)]);
        assert_eq!(
            check_edges(&[bad]),
            reaches("cowslip-server", "cowslip-store", Kind::Normal)
        );
        let bad = package("cowslip-store", &[("cowslip-engine", Some(Kind::Dev))]);
        assert_eq!(
            check_edges(&[bad]),
            reaches("cowslip-store", "cowslip-engine", Kind::Dev)
        );
    }

    #[test]
    fn the_simulation_is_for_tests_only() {
        let good = package("cowslip-engine", &[("cowslip-sim", Some(Kind::Dev))]);
        assert!(check_edges(&[good]).is_empty());
        let bad = package("cowslip", &[("cowslip-sim", None)]);
        assert_eq!(
            check_edges(&[bad]),
            reaches("cowslip", "cowslip-sim", Kind::Normal)
        );
    }

    #[test]
    fn a_crate_from_elsewhere_is_no_layer() {
        let mut good = package("cowslip-model", &[("serde", None)]);
        good.dependencies[0].path = None;
        assert!(check_edges(&[good]).is_empty());
    }

    #[test]
    fn a_new_crate_must_be_given_a_layer() {
        let found = check_edges(&[package("cowslip-new", &[])]);
        assert_eq!(
            found,
            BTreeSet::from([Violation::Unknown {
                package: "cowslip-new".into()
            }])
        );
    }

    #[test]
    fn the_table_itself_has_no_circle() {
        // Each layer comes after all that it may use.
        for (at, layer) in LAYERS.iter().enumerate() {
            for used in layer.may_use {
                let earlier = LAYERS[..at].iter().any(|other| other.name == *used);
                assert!(earlier, "{} may use {used}, which comes later", layer.name);
            }
        }
    }
}
