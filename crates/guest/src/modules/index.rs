//! Finds a release's module tree and lists what is in it.
//!
//! `modules.dep` is only an index here: where a package has none (depmod runs when it is installed,
//! not when it is unpacked) the tree is walked instead. What a module depends on is read from the
//! module itself in both cases, so a stale `modules.dep` cannot mislead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::ModulesError;
use super::compress::split_name;
use super::info::module_name;

/// A distribution's full kernel has about 4,000 modules.
const MAX_MODULES: usize = 50_000;
const MAX_DEPTH: usize = 16;
/// `modules.dep` and `modules.builtin` of a full kernel are under 1 MiB.
const MAX_LIST: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Index {
    /// The tree of this release.
    pub(super) dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: Option<BTreeSet<String>>,
}

impl Index {
    /// Finds the modules of `release` in `dir`, which is the release's own directory or a tree that
    /// holds it.
    pub(super) fn open(dir: &Path, release: &str) -> Result<Self, ModulesError> {
        let tree = locate(dir, release)?;
        let files = match read_list(&tree.join("modules.dep"))? {
            Some(list) => parse_dep(&tree, &list)?,
            None => walk(&tree)?,
        };
        if files.is_empty() {
            return Err(ModulesError::NoModules {
                dir: dir.to_owned(),
            });
        }
        let builtin = read_list(&tree.join("modules.builtin"))?.map(|list| {
            list.lines()
                .filter_map(|line| name_of(Path::new(line.trim())))
                .collect()
        });
        Ok(Self {
            dir: tree,
            files,
            builtin,
        })
    }

    /// The file of the module with this name.
    pub(super) fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// Whether the kernel has it built in.
    pub(super) fn is_builtin(&self, name: &str) -> bool {
        self.builtin
            .as_ref()
            .is_some_and(|names| names.contains(name))
    }

    /// Whether the tree says what is built in.
    pub(super) fn knows_builtins(&self) -> bool {
        self.builtin.is_some()
    }
}

/// What marks a release's own directory.
const MARKS: &[&str] = &["modules.dep", "modules.builtin", "modules.order", "kernel"];

fn locate(dir: &Path, release: &str) -> Result<PathBuf, ModulesError> {
    let is_tree = |path: &Path| MARKS.iter().any(|mark| path.join(mark).exists());
    let metadata = fs::metadata(dir).map_err(|source| io_error(dir, source))?;
    if !metadata.is_dir() {
        return Err(ModulesError::NoModules {
            dir: dir.to_owned(),
        });
    }
    if is_tree(dir) {
        // Its name tells nothing, since it may have been copied; each module's own release does.
        return Ok(dir.to_owned());
    }
    let mut others = BTreeSet::new();
    for parent in ["lib/modules", "usr/lib/modules", ""].map(|parent| dir.join(parent)) {
        let tree = parent.join(release);
        if is_tree(&tree) {
            return Ok(tree);
        }
        let Ok(entries) = fs::read_dir(&parent) else {
            continue;
        };
        let trees = entries
            .flatten()
            .filter(|entry| is_tree(&entry.path()))
            .take(8);
        others.extend(trees.map(|entry| format!("{:?}", entry.file_name())));
    }
    if others.is_empty() {
        return Err(ModulesError::NoModules {
            dir: dir.to_owned(),
        });
    }
    let found = others.into_iter().collect::<Vec<_>>().join(", ");
    Err(ModulesError::OtherRelease {
        dir: dir.to_owned(),
        found,
        release: release.to_owned(),
    })
}

fn parse_dep(tree: &Path, list: &str) -> Result<BTreeMap<String, PathBuf>, ModulesError> {
    let mut files = BTreeMap::new();
    for line in list.lines() {
        let Some((path, _)) = line.split_once(':') else {
            continue;
        };
        let path = Path::new(path);
        // Paths of other shapes would lead out of the tree.
        if !path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            continue;
        }
        if let Some(name) = name_of(path) {
            insert(&mut files, tree, name, tree.join(path))?;
        }
    }
    Ok(files)
}

/// Lists module files below `tree`. Symbolic links (`build`, `source`) are not followed.
fn walk(tree: &Path) -> Result<BTreeMap<String, PathBuf>, ModulesError> {
    let mut files = BTreeMap::new();
    let mut pending = vec![(tree.to_owned(), 0)];
    while let Some((dir, depth)) = pending.pop() {
        if depth > MAX_DEPTH {
            return Err(excess(tree, "its directories are nested too deeply"));
        }
        for entry in fs::read_dir(&dir).map_err(|source| io_error(&dir, source))? {
            let entry = entry.map_err(|source| io_error(&dir, source))?;
            let path = entry.path();
            let kind = entry
                .file_type()
                .map_err(|source| io_error(&path, source))?;
            if kind.is_dir() {
                pending.push((path, depth + 1));
            } else if let Some(name) = name_of(&path).filter(|_| kind.is_file()) {
                insert(&mut files, tree, name, path)?;
            }
        }
        if pending.len() > MAX_MODULES {
            return Err(excess(tree, "it has too many directories"));
        }
    }
    Ok(files)
}

/// Of two files for one module the update wins, as with depmod's default search order.
fn insert(
    files: &mut BTreeMap<String, PathBuf>,
    tree: &Path,
    name: String,
    path: PathBuf,
) -> Result<(), ModulesError> {
    let is_update = |path: &Path| {
        path.strip_prefix(tree)
            .is_ok_and(|p| p.starts_with("updates"))
    };
    match files.get(&name) {
        Some(known) if is_update(known) || (!is_update(&path) && *known <= path) => {}
        _ => {
            files.insert(name, path);
        }
    }
    if files.len() > MAX_MODULES {
        return Err(excess(tree, "it has more than 50,000 modules"));
    }
    Ok(())
}

fn name_of(path: &Path) -> Option<String> {
    module_name(split_name(path.file_name()?.to_str()?)?.0)
}

fn read_list(path: &Path) -> Result<Option<String>, ModulesError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path, source)),
        Ok(metadata) if !metadata.is_file() || metadata.len() > MAX_LIST => {
            return Err(excess(path, "it is not a list of modules"));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|source| io_error(path, source))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn excess(dir: &Path, reason: &'static str) -> ModulesError {
    ModulesError::Excess {
        dir: dir.to_owned(),
        reason,
    }
}

fn io_error(path: &Path, source: io::Error) -> ModulesError {
    ModulesError::Io {
        path: path.to_owned(),
        source,
    }
}
