//! Lints: set once for the workspace, taken from there by every crate.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::{LayersError, Package, Violation};

#[derive(Deserialize)]
struct Manifest {
    lints: Option<toml::Table>,
    workspace: Option<Workspace>,
}

#[derive(Deserialize)]
struct Workspace {
    lints: Option<toml::Table>,
}

/// The crate that may allow unsafe code, and must then repeat the other lints: cargo has no way to
/// inherit all but one.
const UNSAFE_CRATE: &str = "cowslip-host";
const UNSAFE_LINT: &str = "unsafe_code";

/// Finds crates with lints of their own, and a workspace that allows unsafe code.
pub(super) fn check(root: &Path, packages: &[Package]) -> Result<Vec<Violation>, LayersError> {
    let mut found = Vec::new();
    let workspace = read(&root.join("Cargo.toml"))?
        .workspace
        .and_then(|w| w.lints);
    let workspace = workspace.unwrap_or_default();
    if !denies_unsafe(&workspace) {
        found.push(Violation::UnsafeNotDenied);
    }
    for package in packages {
        let own = read(&package.manifest_path)?.lints.unwrap_or_default();
        let repeats = package.name == UNSAFE_CRATE && repeats(&own, &workspace);
        if !inherits(&own) && !repeats {
            found.push(Violation::OwnLints {
                package: package.name.clone(),
            });
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Manifest, LayersError> {
    let text = fs::read_to_string(path).map_err(|e| LayersError::Read(path.to_owned(), e))?;
    toml::from_str(&text).map_err(|e| LayersError::Manifest(path.to_owned(), Box::new(e)))
}

fn inherits(own: &toml::Table) -> bool {
    own.get("workspace") == Some(&true.into())
}

/// Whether every lint of the workspace is there at the same level, but for the unsafe one. More are
/// welcome.
fn repeats(own: &toml::Table, workspace: &toml::Table) -> bool {
    let level = |table: &toml::Table, tool: &str, lint: &str| {
        table.get(tool).and_then(|lints| lints.get(lint)).cloned()
    };
    workspace.iter().all(|(tool, lints)| {
        let mut names = lints.as_table().into_iter().flat_map(toml::Table::keys);
        names.all(|lint| {
            lint == UNSAFE_LINT || level(own, tool, lint) == level(workspace, tool, lint)
        })
    })
}

fn denies_unsafe(workspace: &toml::Table) -> bool {
    let level = workspace
        .get("rust")
        .and_then(|lints| lints.get(UNSAFE_LINT)?.as_str());
    matches!(level, Some("deny" | "forbid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lints(text: &str) -> toml::Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn only_the_workspaces_lints_will_do() {
        assert!(inherits(&lints("workspace = true")));
        assert!(!inherits(&lints("")));
        assert!(!inherits(&lints("workspace = false")));
        assert!(!inherits(&lints("[rust]\nmissing_docs = \"warn\"")));
    }

    #[test]
    fn the_host_crate_must_repeat_all_other_lints() {
        let workspace = lints(
            "[rust]\nunsafe_code = \"deny\"\nmissing_docs = \"warn\"\n\
             [clippy]\nall = { level = \"warn\", priority = -1 }",
        );
        let own = "[rust]\nunsafe_code = \"allow\"\nmissing_docs = \"warn\"\nunused = \"deny\"\n";
        let clippy = "[clippy]\nall = { level = \"warn\", priority = -1 }\n";
        assert!(repeats(&lints(&format!("{own}{clippy}")), &workspace));
        assert!(!repeats(&lints(own), &workspace));
        let weaker = own.replace("missing_docs = \"warn\"", "missing_docs = \"allow\"");
        assert!(!repeats(&lints(&format!("{weaker}{clippy}")), &workspace));
    }

    #[test]
    fn a_workspace_that_allows_unsafe_code_is_noticed() {
        assert!(denies_unsafe(&lints("[rust]\nunsafe_code = \"deny\"")));
        assert!(!denies_unsafe(&lints("[rust]\nunsafe_code = \"warn\"")));
        assert!(!denies_unsafe(&lints("")));
    }
}
