//! Guests, reduced to what checkpoints and forks must keep: a memory and the writes to a disk.
//!
//! The memory remembers what the guest believes to be on its disk, as a page cache does. A guest
//! whose disk reads otherwise was given the disk of another instant (R26).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use cowslip_model::{DiskChain, DiskFormat, SandboxId};
use cowslip_store::qcow2::read_header;

use super::{Inner, World};

/// What a guest keeps in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) counter: u64,
    pub(crate) disk: Vec<String>,
    pub(crate) generation: u64,
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
    pub(crate) configured: bool,
}

/// A saved machine.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) memory: Memory,
    /// Which save it is of.
    pub(crate) save: u64,
    /// The save whose image it stands on, where it holds only what changed since that.
    pub(crate) stands_on: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestState {
    Running,
    Paused,
}

/// A machine: its guest, and the files of its disk, base first.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) state: GuestState,
    pub(crate) memory: Memory,
    /// The save that it was restored from, or was the last; none since a boot. What was written to its memory
    /// is known from there on.
    pub(crate) saved: Option<u64>,
    /// Whether the guest was told who it is since the machine began.
    pub(crate) told: bool,
    pub(crate) chain: Vec<PathBuf>,
}

/// What a test sees of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestView {
    /// Whether its vCPUs run.
    pub running: bool,
    /// A number that only its memory holds.
    pub counter: u64,
    /// Everything on its disk, in the order it was written.
    pub disk: Vec<String>,
    /// The generation it was last told.
    pub generation: u64,
    /// The host name it was last told.
    pub hostname: String,
    /// The machine id it was last told.
    pub machine_id: String,
}

/// What a guest did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGuest {
    /// The sandbox has no machine.
    #[error("sandbox {0} has no machine")]
    Gone(SandboxId),
    /// Its vCPUs stand still.
    #[error("the guest of sandbox {0} stands still")]
    Paused(SandboxId),
}

impl World {
    /// The guest of a sandbox.
    #[must_use]
    pub fn guest(&self, sandbox: SandboxId) -> Option<GuestView> {
        let inner = self.lock();
        let machine = inner.process_of(sandbox)?.1.machine.as_ref()?;
        Some(GuestView {
            running: machine.state == GuestState::Running,
            counter: machine.memory.counter,
            disk: inner.content(&machine.chain),
            generation: machine.memory.generation,
            hostname: machine.memory.hostname.clone(),
            machine_id: machine.memory.machine_id.clone(),
        })
    }

    /// The guest writes `text` to its disk.
    ///
    /// # Errors
    /// When there is no running guest; so for every method like it.
    pub fn guest_write(&self, sandbox: SandboxId, text: &str) -> Result<(), NoGuest> {
        let mut inner = self.lock();
        inner.check_disk(sandbox);
        let top = inner.with_guest(sandbox, |machine| {
            machine.memory.disk.push(text.to_owned());
            machine.chain.last().cloned()
        })?;
        let Some(top) = top else { return Ok(()) };
        let shared = inner
            .processes
            .values()
            .filter(|process| process.sandbox != Some(sandbox))
            .any(|process| process.opened().any(|file| file == top));
        if shared {
            inner.violation(format!(
                "\"{}\" was written while another machine uses it (R25)",
                top.display()
            ));
        }
        match inner.file_mut(&top) {
            Ok(file) => file.writes.push(text.to_owned()),
            Err(_) => inner.violation(format!("\"{}\" is written and is gone", top.display())),
        }
        Ok(())
    }

    /// The guest counts one up in its memory.
    ///
    /// # Errors
    /// As for [`World::guest_write`].
    pub fn guest_count(&self, sandbox: SandboxId) -> Result<u64, NoGuest> {
        self.lock().with_guest(sandbox, |machine| {
            machine.memory.counter += 1;
            machine.memory.counter
        })
    }

    /// Checks that every guest's disk is what its memory believes; what is not becomes a violation.
    pub fn check_guests(&self) {
        let mut inner = self.lock();
        let sandboxes: Vec<SandboxId> = inner
            .processes
            .values()
            .filter_map(|process| process.sandbox)
            .collect();
        for sandbox in sandboxes {
            inner.check_disk(sandbox);
        }
    }
}

impl Inner {
    /// Acts in a running guest.
    pub(crate) fn with_guest<T>(
        &mut self,
        sandbox: SandboxId,
        act: impl FnOnce(&mut Machine) -> T,
    ) -> Result<T, NoGuest> {
        let found = self
            .processes
            .values_mut()
            .find(|process| process.sandbox == Some(sandbox));
        let machine = found
            .and_then(|process| process.machine.as_mut())
            .ok_or(NoGuest::Gone(sandbox))?;
        match machine.state {
            GuestState::Running => Ok(act(machine)),
            GuestState::Paused => Err(NoGuest::Paused(sandbox)),
        }
    }

    /// Everything on a disk, base first.
    pub(crate) fn content(&self, chain: &[PathBuf]) -> Vec<String> {
        let files = chain.iter().filter_map(|path| self.file(path).ok());
        files.flat_map(|file| file.writes.iter().cloned()).collect()
    }

    /// Notes random bytes that are too few, or were given before (R51).
    pub(crate) fn note_entropy(&mut self, sandbox: SandboxId, bytes: Vec<u8>) {
        if bytes.len() < 32 || !self.entropy.insert(bytes) {
            self.violation(format!(
                "the guest of sandbox {sandbox} got no fresh randomness (R51)"
            ));
        }
    }

    /// Notes running guests that take themselves for the same machine. Those that were restored and
    /// not yet told so are on their way to an identity of their own.
    pub(crate) fn check_identities(&mut self) {
        let mut seen = BTreeSet::new();
        let running = self
            .processes
            .values()
            .filter_map(|process| process.machine.as_ref());
        let twice: Vec<String> = running
            .filter(|machine| machine.told && !machine.memory.machine_id.is_empty())
            .map(|machine| machine.memory.machine_id.clone())
            .filter(|id| !seen.insert(id.clone()))
            .collect();
        for id in twice {
            self.violation(format!("two guests have the machine id {id} (R51)"));
        }
    }

    /// Notes a guest whose disk is not what its memory believes.
    pub(crate) fn check_disk(&mut self, sandbox: SandboxId) {
        let Some((_, process)) = self.process_of(sandbox) else {
            return;
        };
        let Some(machine) = &process.machine else {
            return;
        };
        let found = self.content(&machine.chain);
        if found != machine.memory.disk {
            let what = format!(
                "the memory of sandbox {sandbox} holds a disk with {:?}, its disk has {found:?} (R26)",
                machine.memory.disk
            );
            self.violation(what);
        }
    }

    /// A monitor opens a disk: every file is there, each overlay stands over the one before it, and
    /// nobody else writes any of them.
    pub(crate) fn open_disk(
        &mut self,
        sandbox: SandboxId,
        disk: &DiskChain,
    ) -> io::Result<Vec<PathBuf>> {
        let layers: Vec<_> = disk.frozen.iter().chain([&disk.top]).collect();
        let mut below: Option<&Path> = None;
        for layer in &layers {
            self.file(&layer.path)?;
            if layer.format == DiskFormat::Qcow2 {
                self.check_overlay(&layer.path, below)?;
            }
            let writer = self
                .writer_of(&layer.path)
                .filter(|p| p.sandbox != Some(sandbox));
            if let Some(writer) = writer {
                let what = format!(
                    "\"{}\" was opened for sandbox {sandbox} while {} writes it (R25)",
                    layer.path.display(),
                    writer.mark
                );
                self.violation(what);
            }
            below = Some(&layer.path);
        }
        let top = &disk.top.path;
        let read = self
            .processes
            .values()
            .filter(|process| process.sandbox != Some(sandbox))
            .any(|process| process.opened().any(|file| file == top));
        if read {
            self.violation(format!(
                "\"{}\" was opened to be written while it is shared (R25)",
                top.display()
            ));
        }
        Ok(layers.into_iter().map(|layer| layer.path.clone()).collect())
    }

    /// What the header of an overlay says is what it is opened over.
    pub(crate) fn check_overlay(&mut self, path: &Path, below: Option<&Path>) -> io::Result<()> {
        let file = self.file(path)?;
        let found = read_header(&file.head, file.length).map_err(io::Error::other)?;
        let directory = path.parent().unwrap_or(path);
        let backing = std::str::from_utf8(&found.backing).map_err(io::Error::other)?;
        let backing = normal(&directory.join(backing));
        if Some(backing.as_path()) != below {
            self.violation(format!(
                "\"{}\" stands over \"{}\" and was opened over {below:?}",
                path.display(),
                backing.display()
            ));
        }
        Ok(())
    }
}

/// A path without `..`, by its words alone.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}
