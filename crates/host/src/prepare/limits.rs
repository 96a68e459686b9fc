//! Limits of the kernel that 1,000 sandboxes would meet. Raised where they are below what is needed, and
//! never lowered. The numbers are explained in `docs/host.md`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use serde::{Deserialize, Serialize};

use super::record::Record;
use super::{Finding, Part, PrepareError, Roots, Standing, Step, TakenBack};
use crate::error::HostError;

/// The step.
#[derive(Debug)]
pub(super) struct Limits<'a> {
    roots: &'a Roots,
}

/// A limit that was raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    /// The sysctl.
    pub(super) name: String,
    /// What it was.
    pub(super) was: u64,
    /// What it was set to.
    pub(super) now: u64,
}

/// The least that will do, and what takes it up.
#[derive(Debug)]
struct Floor {
    name: &'static str,
    least: u64,
    what: &'static str,
}

const FLOORS: [Floor; 5] = [
    Floor {
        name: "fs.inotify.max_user_instances",
        least: 2048,
        what: "logs that are followed, machines that boot",
    },
    Floor {
        name: "fs.file-max",
        least: 262_144,
        what: "open files of machines and of the engine",
    },
    Floor {
        name: "kernel.pid_max",
        least: 131_072,
        what: "threads of machines and of the kernel",
    },
    Floor {
        name: "vm.max_map_count",
        least: 65_530,
        what: "mappings of one process",
    },
    Floor {
        name: "fs.aio-max-nr",
        least: 65_536,
        what: "asynchronous requests",
    },
];

impl<'a> Limits<'a> {
    pub(super) fn new(roots: &'a Roots) -> Self {
        Self { roots }
    }

    /// None where this kernel has no such limit.
    fn read(&self, name: &str) -> Result<Option<u64>, PrepareError> {
        let path = self.roots.sysctl(name);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(HostError::path("read", &path))?,
        };
        let text = text.trim();
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(PrepareError::Number {
                path,
                text: text.to_owned(),
            }),
        }
    }

    fn write(&self, name: &str, value: u64) -> Result<(), PrepareError> {
        let path = self.roots.sysctl(name);
        let opened = OpenOptions::new().write(true).truncate(true).open(&path);
        let written = opened.and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()));
        Ok(written.map_err(HostError::path("set", &path))?)
    }
}

impl Step for Limits<'_> {
    const PART: Part = Part::Limits;
    type Change = Limit;

    fn recorded(record: &mut Record) -> &mut Vec<Limit> {
        &mut record.limits
    }

    fn object(&self, limit: &Limit) -> String {
        limit.name.clone()
    }

    fn look(&self) -> Result<Vec<Finding<Limit>>, PrepareError> {
        let findings = FLOORS.iter().map(|Floor { name, least, what }| {
            let (standing, detail) = match self.read(name)? {
                None => (
                    Standing::Unneeded,
                    "this kernel has no such limit".to_owned(),
                ),
                Some(found) if found >= *least => {
                    (Standing::Ready, format!("{found} is not below {least}"))
                }
                Some(found) => {
                    let limit = Limit {
                        name: (*name).to_owned(),
                        was: found,
                        now: *least,
                    };
                    (
                        Standing::Needed(limit),
                        format!("{found} → {least}: {what}"),
                    )
                }
            };
            Ok(Finding {
                object: (*name).to_owned(),
                standing,
                detail,
            })
        });
        findings.collect()
    }

    fn make(&self, limit: &Limit) -> Result<(), PrepareError> {
        match self.read(&limit.name)? {
            Some(found) if found < limit.now => self.write(&limit.name, limit.now),
            _ => Ok(()),
        }
    }

    fn undo(&self, limit: &Limit) -> Result<TakenBack, PrepareError> {
        let Limit { name, was, now } = limit;
        Ok(match self.read(name)? {
            Some(found) if found == *now => {
                self.write(name, *was)?;
                TakenBack::Undone(format!("{now} → {was}"))
            }
            Some(found) if found == *was => TakenBack::Gone(format!("was {was} already")),
            Some(found) => {
                TakenBack::Left(format!("is {found}: changed since it was set to {now}"))
            }
            None => TakenBack::Gone("this kernel has no such limit".to_owned()),
        })
    }
}
