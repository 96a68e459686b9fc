//! Picks the modules that a distribution's kernel needs in a guest.
//!
//! ```text
//!  tree (index.rs)  ──names──►  wanted.rs ──closure over depends= (info.rs)──► boot, later
//! ```
//!
//! A distribution builds most drivers as modules and expects its own initramfs to load them. A
//! guest's devices are few and known, so the choice is a table, not a probe. What the disk, the
//! console and the agent's port need is loaded before the root file system is mounted
//! ([`Stage::Boot`]); the rest waits until the agent answers ([`Stage::Later`]).

mod compress;
mod index;
mod info;
mod wanted;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cpio::{Archive, CpioError};
use index::Index;
use info::ModuleInfo;

/// The largest module that is accepted, decompressed, in bytes.
pub const MAX_MODULE: u64 = 64 << 20;
/// The most that all picked modules may have together, decompressed, in bytes.
pub const MAX_TOTAL: u64 = 256 << 20;
/// The longest chain of dependencies; real ones have fewer than ten links.
const MAX_CHAIN: usize = 64;

/// The directory of the initramfs that holds the modules.
pub const MODULE_DIR: &str = "modules";
/// Absolute paths, one a line, in the order in which to load them before the disk is mounted.
pub const LOAD_ORDER: &str = "modules/load-order";
/// The same for what may wait until the agent answers.
pub const LATER: &str = "modules/later";

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Before the root file system is mounted.
    Boot,
    /// After the agent has answered.
    Later,
}

/// Why modules could not be picked.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The directory holds no modules.
    #[error(
        "no kernel modules in \"{dir}\": give a lib/modules/RELEASE directory, or a tree that holds one"
    )]
    NoModules {
        /// The directory as it was named.
        dir: PathBuf,
    },
    /// It holds modules, for other kernels.
    #[error(
        "\"{dir}\" has modules for {found}, but the kernel is \"{release}\": take both from one package"
    )]
    OtherRelease {
        /// The directory as it was named.
        dir: PathBuf,
        /// The releases that are there, quoted.
        found: String,
        /// The kernel's release.
        release: String,
    },
    /// A driver without which no guest can boot is neither built in nor there.
    #[error(
        "kernel \"{release}\" cannot boot a sandbox: {missing} is neither built in nor in \"{dir}\""
    )]
    Required {
        /// The kernel's release.
        release: String,
        /// The driver, quoted.
        missing: String,
        /// The directory of the modules.
        dir: PathBuf,
    },
    /// A module depends on one that is not there.
    #[error("module \"{module}\" needs \"{missing}\", which is not in \"{dir}\"")]
    Dependency {
        /// The module that was picked.
        module: String,
        /// What it depends on.
        missing: String,
        /// The directory of the modules.
        dir: PathBuf,
    },
    /// Modules depend on each other in a circle.
    #[error("module \"{0}\" depends on itself: the module tree is damaged")]
    Circle(String),
    /// A module file that is none, or is too large.
    #[error("\"{path}\" is not a usable kernel module: {reason}")]
    Damaged {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tree has more files, deeper directories or larger modules than any real one.
    #[error("\"{dir}\" is not a plausible module tree: {reason}")]
    Excess {
        /// The directory as it was named.
        dir: PathBuf,
        /// The bound that was passed.
        reason: &'static str,
    },
    /// A file or directory cannot be read.
    #[error("cannot read \"{path}\"")]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A module that goes into the initramfs.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name as the kernel knows it, with underscores.
    pub(crate) name: String,
    pub(crate) stage: Stage,
    /// The ELF object, decompressed.
    pub(crate) object: Vec<u8>,
}

/// Picks what a guest of kernel `release` needs from `dir`, in an order in which each module comes
/// after those it depends on.
pub(crate) fn select(dir: &Path, release: &str) -> Result<Vec<Module>, ModulesError> {
    let index = Index::open(dir, release)?;
    let mut selection = Selection {
        index: &index,
        release,
        picked: Vec::new(),
        total: 0,
    };
    for wanted in wanted::WANTED {
        selection.want(wanted)?;
    }
    for alternatives in wanted::REQUIRED {
        selection.require(alternatives)?;
    }
    let (boot, later): (Vec<_>, Vec<_>) = selection
        .picked
        .into_iter()
        .partition(|module| module.stage == Stage::Boot);
    tracing::debug!(
        release,
        boot = boot.len(),
        later = later.len(),
        "picked kernel modules"
    );
    Ok(boot.into_iter().chain(later).collect())
}

/// The archive that holds `modules` and the two lists the agent reads.
pub(crate) fn archive(modules: &[Module]) -> Result<Archive<'_>, CpioError> {
    let mut archive = Archive::new();
    let mut lists = [String::new(), String::new()];
    for module in modules {
        let path = archive_path(&module.name);
        archive.file(&path, 0o644, module.object.as_slice())?;
        let list = &mut lists[usize::from(module.stage == Stage::Later)];
        list.extend(["/", &path, "\n"]);
    }
    let [boot, later] = lists;
    archive.file(LOAD_ORDER, 0o644, boot.into_bytes())?;
    archive.file(LATER, 0o644, later.into_bytes())?;
    Ok(archive)
}

/// Where a module lies in the initramfs, without the leading slash.
pub(crate) fn archive_path(name: &str) -> String {
    format!("{MODULE_DIR}/{name}.ko")
}

struct Selection<'a> {
    index: &'a Index,
    release: &'a str,
    picked: Vec<Module>,
    total: u64,
}

impl Selection<'_> {
    fn has(&self, name: &str) -> bool {
        self.picked.iter().any(|module| module.name == name)
    }

    /// Picks a module of the table if the tree has it; drivers that it lacks are not missed here.
    fn want(&mut self, wanted: &wanted::Wanted) -> Result<(), ModulesError> {
        if self.index.file(wanted.name).is_none() {
            return Ok(());
        }
        self.pick(wanted.name, wanted.stage, &mut BTreeSet::new())
    }

    /// Depth first, so that dependencies are picked before what needs them. `open` holds the modules
    /// on the way down: one that comes up again closes a circle.
    fn pick(
        &mut self,
        name: &str,
        stage: Stage,
        open: &mut BTreeSet<String>,
    ) -> Result<(), ModulesError> {
        if self.has(name) || self.index.is_builtin(name) {
            return Ok(());
        }
        let Some(path) = self.index.file(name) else {
            return Ok(());
        };
        if !open.insert(name.to_owned()) {
            return Err(ModulesError::Circle(name.to_owned()));
        }
        if open.len() > MAX_CHAIN {
            let reason = "its modules depend on each other in too long a chain";
            return Err(ModulesError::Excess {
                dir: self.index.dir.clone(),
                reason,
            });
        }
        let object = read_module(path)?;
        let info = ModuleInfo::parse(&object).map_err(|reason| damaged(path, reason))?;
        if info.release != self.release {
            return Err(ModulesError::OtherRelease {
                dir: self.index.dir.clone(),
                found: format!("\"{}\" ({name})", info.release),
                release: self.release.to_owned(),
            });
        }
        for needed in &info.depends {
            if !self.index.is_builtin(needed) && self.index.file(needed).is_none() {
                return Err(ModulesError::Dependency {
                    module: name.to_owned(),
                    missing: needed.clone(),
                    dir: self.index.dir.clone(),
                });
            }
            self.pick(needed, stage, open)?;
        }
        // A wish, not a need: a name that is no module here is an alias that something built in has.
        for wish in &info.load_before {
            if !open.contains(wish) {
                self.pick(wish, stage, open)?;
            }
        }
        open.remove(name);
        self.total += object.len() as u64;
        if self.total > MAX_TOTAL {
            let reason = "the modules a guest needs are over 256 MiB";
            return Err(ModulesError::Excess {
                dir: self.index.dir.clone(),
                reason,
            });
        }
        self.picked.push(Module {
            name: name.to_owned(),
            stage,
            object,
        });
        Ok(())
    }

    /// One of `alternatives` must be picked or built in. A tree without a list of what is built in
    /// says nothing about what is missing, so it is given the benefit of the doubt.
    fn require(&self, alternatives: &[&str]) -> Result<(), ModulesError> {
        let there = |name: &&str| self.has(name) || self.index.is_builtin(name);
        if !self.index.knows_builtins() || alternatives.iter().any(there) {
            return Ok(());
        }
        let quoted: Vec<_> = alternatives
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        Err(ModulesError::Required {
            release: self.release.to_owned(),
            missing: quoted.join(" or "),
            dir: self.index.dir.clone(),
        })
    }
}

fn read_module(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let failed = |source| ModulesError::Io {
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(damaged(path, "it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_MODULE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    compress::unpack(path, bytes).map_err(|reason| damaged(path, reason))
}

fn damaged(path: &Path, reason: String) -> ModulesError {
    ModulesError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
