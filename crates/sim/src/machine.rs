//! One simulated machine, as an engine holds it. Dropping it changes nothing in the world.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cowslip_ledger::LedgerError;
use cowslip_ledger::fault::Injector;
use cowslip_model::{DiskFormat, DiskLayer, SandboxId};
use cowslip_vmm::{AgentChannel, Machine, RunState, Saved, VmmError};
use tokio::sync::watch;

use crate::world::{self, FileNode, GuestState, Image, Inner, LastWords, Node, World};

pub(crate) struct SimMachine {
    pub(crate) world: World,
    pub(crate) faults: Injector,
    pub(crate) sandbox: SandboxId,
    pub(crate) pid: u32,
    pub(crate) ended: Option<watch::Receiver<Option<LastWords>>>,
}

impl SimMachine {
    /// Acts on the world as one step; the machine must live.
    fn step<T>(
        &self,
        step: &str,
        operation: &'static str,
        act: impl FnOnce(&mut Inner) -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        let outcome = self.faults.around(step, || {
            let mut inner = self.world.lock();
            self.with(&mut inner, operation, |_| ())?;
            act(&mut inner)
        });
        outcome.map_err(|fault| VmmError::from(LedgerError::from(fault)))?
    }

    fn with<T>(
        &self,
        inner: &mut Inner,
        operation: &'static str,
        act: impl FnOnce(&mut world::Machine) -> T,
    ) -> Result<T, VmmError> {
        let machine = inner
            .processes
            .get_mut(&self.pid)
            .and_then(|p| p.machine.as_mut());
        machine.map(act).ok_or(VmmError::Ended {
            operation,
            sandbox: self.sandbox,
            detail: None,
        })
    }

    fn refused(&self, operation: &'static str, message: impl ToString) -> VmmError {
        VmmError::Refused {
            operation,
            sandbox: self.sandbox,
            message: message.to_string(),
        }
    }

    /// Refuses unless the vCPUs stand still.
    fn paused(&self, inner: &mut Inner, operation: &'static str) -> Result<(), VmmError> {
        match self.with(inner, operation, |machine| machine.state)? {
            GuestState::Paused => Ok(()),
            GuestState::Running => Err(self.refused(operation, "the machine runs")),
        }
    }
}

#[async_trait]
impl Machine for SimMachine {
    async fn pause(&self) -> Result<(), VmmError> {
        self.step("monitor: pause", "pause", |inner| {
            self.with(inner, "pause", |machine| machine.state = GuestState::Paused)
        })
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.step("monitor: resume", "resume", |inner| {
            self.with(inner, "resume", |machine| {
                machine.state = GuestState::Running
            })
        })
    }

    async fn state(&self) -> Result<RunState, VmmError> {
        self.step("monitor: ask for the state", "state", |inner| {
            self.with(inner, "state", |machine| match machine.state {
                GuestState::Running => RunState::Running,
                GuestState::Paused => RunState::Paused,
            })
        })
    }

    /// In two steps, so that a failure between them leaves half an image, as a full disk does.
    async fn save(&self, image: &Path, base: Option<&Path>) -> Result<Saved, VmmError> {
        let file = |source: io::Error| VmmError::File {
            operation: "save to",
            path: image.to_owned(),
            source,
        };
        self.step("monitor: begin to save", "save", |inner| {
            self.paused(inner, "save")?;
            inner
                .create(image, Node::File(FileNode::default()))
                .map(drop)
                .map_err(file)
        })?;
        self.step("monitor: save", "save", |inner| {
            let save = inner.number();
            // What was written is forgotten with the save, whether anybody hears of it or not.
            let (memory, before) = self.with(inner, "save", |machine| {
                (machine.memory.clone(), machine.saved.replace(save))
            })?;
            let stands_on = match base {
                None => None,
                Some(base) => {
                    let found = inner.file(base).map_err(file)?.image.as_ref();
                    let found = found.map(|image| image.save);
                    if found.is_none() || found != before {
                        let what = format!(
                            "sandbox {} saved what changed since save {before:?} as if it were since {found:?}",
                            self.sandbox
                        );
                        inner.violation(what);
                    }
                    found
                }
            };
            let length = 4096 + memory.disk.len() as u64;
            let node = inner.file_mut(image).map_err(file)?;
            node.image = Some(Image {
                memory,
                save,
                stands_on,
            });
            node.length = length;
            Ok(Saved {
                bytes: length,
                changes_only: stands_on.is_some(),
            })
        })
    }

    fn tracks_memory(&self) -> bool {
        true
    }

    async fn change_disk(&self, next: &DiskLayer) -> Result<(), VmmError> {
        self.step("monitor: change disk", "change_disk", |inner| {
            self.paused(inner, "change_disk")?;
            if next.format != DiskFormat::Qcow2 {
                return Err(self.refused("change_disk", "the new layer is no overlay"));
            }
            let top = self.with(inner, "change_disk", |machine| {
                machine.chain.last().cloned()
            })?;
            inner
                .check_overlay(&next.path, top.as_deref())
                .map_err(|error| self.refused("change_disk", error))?;
            if inner
                .file(&next.path)
                .is_ok_and(|file| !file.writes.is_empty())
            {
                let what = format!("\"{}\" is no empty overlay", next.path.display());
                inner.violation(what);
            }
            self.with(inner, "change_disk", |machine| {
                machine.chain.push(next.path.clone())
            })
        })
    }

    async fn disk_top(&self) -> Result<PathBuf, VmmError> {
        self.step("monitor: ask for the disk", "disk_top", |inner| {
            let top = self.with(inner, "disk_top", |machine| machine.chain.last().cloned())?;
            top.ok_or_else(|| self.refused("disk_top", "the machine has no disk"))
        })
    }

    async fn agent(&self) -> Result<AgentChannel, VmmError> {
        Err(self.refused("agent", "a simulated guest has no channel; ask SimGuests"))
    }

    async fn ended(&self) -> Option<String> {
        let mut ended = self.ended.clone()?;
        let words = ended.wait_for(Option::is_some).await.ok()?.clone();
        words.flatten().map(|words| words.to_string())
    }
}
