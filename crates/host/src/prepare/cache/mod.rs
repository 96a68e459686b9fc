//! Attributes of processor caches that a nested host leaves out (R17).
//!
//! sysfs takes no new files. So a cache's directory is copied, the missing attributes are added to the copy,
//! and the copy is bound over the directory, for reading only:
//!
//! ```text
//!   /sys/devices/system/cpu/cpu0/cache/index2   level type shared_cpu_map …
//!                     ▲ bound, read-only
//!   <run>/host/cache/cpu0-index2                the same, and size number_of_sets …
//! ```

mod derive;
mod files;

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::record::Record;
use super::{Finding, Part, PrepareError, Roots, Standing, Step, TakenBack};
use crate::directory::remove_tree;
use crate::error::HostError;
use crate::layout::Layout;
use crate::mount::{self, Entry};
use derive::{Lack, REQUIRED, lack};
use files::{attribute, copy_with, names, numbered};

/// The step.
#[derive(Debug)]
pub(super) struct CacheAttributes<'a> {
    roots: &'a Roots,
    layout: &'a Layout,
}

/// A cache whose directory is mounted over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    /// The processor's number.
    pub(super) cpu: u32,
    /// The cache's number among the processor's own.
    pub(super) index: u32,
}

/// Where our copy is among the mounts on a cache's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere.
    Absent,
    /// What is seen there.
    Top {
        /// As it should be.
        read_only: bool,
    },
    /// Below another mount.
    Covered,
}

impl<'a> CacheAttributes<'a> {
    pub(super) fn new(roots: &'a Roots, layout: &'a Layout) -> Self {
        Self { roots, layout }
    }

    fn processors(&self) -> PathBuf {
        self.roots.sys.join("devices/system/cpu")
    }

    fn directory(&self, cache: Cache) -> PathBuf {
        let Cache { cpu, index } = cache;
        self.processors()
            .join(format!("cpu{cpu}/cache/index{index}"))
    }

    fn copy(&self, cache: Cache) -> PathBuf {
        self.layout.cache_copy(cache.cpu, cache.index)
    }

    /// Every cache that has a directory.
    fn caches(&self) -> Result<Vec<Cache>, PrepareError> {
        let mut all = Vec::new();
        for cpu in numbered(&self.processors(), "cpu")? {
            let directory = self.processors().join(format!("cpu{cpu}/cache"));
            let caches = numbered(&directory, "index")?.into_iter();
            all.extend(caches.map(|index| Cache { cpu, index }));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Every cache of which there is a copy.
    pub(super) fn copies(&self) -> Result<Vec<Cache>, HostError> {
        let place = self.layout.cache_copies();
        let mut all = Vec::new();
        for name in names(&place)? {
            let numbers = name.strip_prefix("cpu").and_then(|rest| {
                let (cpu, index) = rest.split_once("-index")?;
                Some((cpu.parse().ok()?, index.parse().ok()?))
            });
            all.extend(numbers.map(|(cpu, index)| Cache { cpu, index }));
        }
        all.sort_unstable();
        Ok(all)
    }

    fn place(&self, cache: Cache) -> Result<Place, HostError> {
        Ok(self.place_in(cache, &mount::table()?))
    }

    fn place_in(&self, cache: Cache, table: &[Entry]) -> Place {
        let directory = self.directory(cache);
        // The run directory may lie anywhere in its file system: the end of the path tells.
        let copy = self.copy(cache);
        let tail = copy.strip_prefix(self.layout.run()).unwrap_or(&copy);
        let ours = |mount: &Entry| {
            let root = mount.root.to_string_lossy();
            Path::new(root.trim_end_matches("//deleted")).ends_with(tail)
        };
        let mut mounts = table.iter().rev().filter(|mount| mount.point == directory);
        match mounts.next() {
            Some(top) if ours(top) => Place::Top {
                read_only: top.read_only,
            },
            Some(_) if mounts.any(ours) => Place::Covered,
            _ => Place::Absent,
        }
    }

    fn lack(&self, cache: Cache) -> Lack {
        let directory = self.directory(cache);
        lack(cache.cpu, |name| attribute(&directory, name))
    }

    /// Unmounts our copy as long as it is what is seen; false where it was not.
    fn take_down(&self, cache: Cache) -> Result<bool, HostError> {
        let directory = self.directory(cache);
        let mut seen = false;
        while let Place::Top { .. } = self.place(cache)? {
            // Whoever reads an attribute at this moment has it open: it goes when they are done.
            unmount(&directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(HostError::path("unmount", &directory))?;
            seen = true;
        }
        Ok(seen)
    }
}

impl Step for CacheAttributes<'_> {
    const PART: Part = Part::CacheAttributes;
    type Change = Cache;

    fn recorded(record: &mut Record) -> &mut Vec<Cache> {
        &mut record.caches
    }

    fn object(&self, cache: &Cache) -> String {
        format!("cpu{}/index{}", cache.cpu, cache.index)
    }

    fn look(&self) -> Result<Vec<Finding<Cache>>, PrepareError> {
        let caches = self.caches()?;
        if caches.is_empty() {
            return Ok(vec![Finding {
                object: "all processors".to_owned(),
                standing: Standing::Impossible,
                detail: "sysfs has no directory of a cache, and takes none; x86-64 does without"
                    .to_owned(),
            }]);
        }
        let table = mount::table()?;
        let mut whole = 0;
        let mut findings = Vec::new();
        for cache in caches {
            let place = self.place_in(cache, &table);
            let (standing, detail) = match (self.lack(cache), place) {
                (Lack::Nothing, Place::Top { read_only: false }) => {
                    let detail = "its copy is mounted, and can be written".to_owned();
                    (Standing::Needed(cache), detail)
                }
                (Lack::Nothing, _) => {
                    whole += 1;
                    continue;
                }
                (_, Place::Top { .. }) => {
                    let detail = "its copy is mounted, and is damaged".to_owned();
                    (Standing::Needed(cache), detail)
                }
                (Lack::Values(values), _) => (Standing::Needed(cache), in_words(&values)),
                (Lack::Unknown(missing), _) => {
                    let detail = format!("lacks {}: nothing tells what it is", missing.join(", "));
                    (Standing::Impossible, detail)
                }
            };
            findings.push(Finding {
                object: self.object(&cache),
                standing,
                detail,
            });
        }
        if whole > 0 {
            let all = if findings.is_empty() {
                "all"
            } else {
                "the others"
            };
            findings.push(Finding {
                object: format!("{all} ({whole})"),
                standing: Standing::Ready,
                detail: format!("have {}", REQUIRED.join(", ")),
            });
        }
        Ok(findings)
    }

    fn make(&self, cache: &Cache) -> Result<(), PrepareError> {
        let (directory, copy) = (self.directory(*cache), self.copy(*cache));
        if self.lack(*cache) == Lack::Nothing {
            if self.place(*cache)? == (Place::Top { read_only: false }) {
                mount::restrict(&directory, true)?;
            }
            return Ok(());
        }
        // A copy that is damaged hides what the kernel tells.
        self.take_down(*cache)?;
        if let Lack::Values(values) = self.lack(*cache) {
            copy_with(&directory, &copy, &values)?;
            mount::bind(&copy, &directory, true)?;
        }
        Ok(())
    }

    fn undo(&self, cache: &Cache) -> Result<TakenBack, PrepareError> {
        let mounted = self.take_down(*cache)?;
        if self.place(*cache)? == Place::Covered {
            let path = self.directory(*cache);
            return Err(PrepareError::Covered { path });
        }
        remove_tree(&self.copy(*cache))?;
        Ok(if mounted {
            TakenBack::Undone("unmounted: what the kernel tells is seen again".to_owned())
        } else {
            TakenBack::Gone("was not mounted any more".to_owned())
        })
    }
}

fn in_words(values: &[(&'static str, String)]) -> String {
    let values: Vec<String> = values
        .iter()
        .map(|(name, value)| format!("{name} ({value})"))
        .collect();
    format!("lacks {}", values.join(", "))
}
