//! Where everything lies. All names of files and directories that cowslip makes are here.
//!
//! ```text
//! <state>/  0700                        <run>/  0700 (its socket 0660)
//!   cowslip.db  lock  engine.log          cowslip.sock
//!   handles/<sandbox>.json                vm/<sandbox>/   sockets and pipes of one machine
//!   kernels/<id>/  templates/<id>/        host/           what `host prepare` did
//!                                           prepared.json
//!                                           cache/cpu<n>-index<n>/
//!   layers/<id>.qcow2|.raw|.cow
//!   checkpoints/<id>/  sandboxes/<id>/  scratch/<id>/
//! ```

use std::path::{Path, PathBuf};

use cowslip_model::{CheckpointId, DiskFormat, HandleId, KernelId, LayerId, SandboxId, TemplateId};

use crate::HostError;

/// The longest path a unix socket can be bound to, without its final NUL.
pub const SOCKET_PATH_MAX: usize = 107;

/// The state and run directories of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    state: PathBuf,
    run: PathBuf,
}

impl Layout {
    /// The layout over these two absolute directories.
    #[must_use]
    pub fn new(state: PathBuf, run: PathBuf) -> Self {
        Self { state, run }
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The run directory: nothing in it outlives a reboot.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The API's socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("cowslip.sock")
    }

    /// The engine's log, when it was started in the background.
    #[must_use]
    pub fn engine_log(&self) -> PathBuf {
        self.state.join("engine.log")
    }

    /// Directories in the state directory that hold one entry an object.
    #[must_use]
    pub fn collections(&self) -> [PathBuf; 6] {
        [
            "kernels",
            "templates",
            "layers",
            "checkpoints",
            "sandboxes",
            "scratch",
        ]
        .map(|name| self.state.join(name))
    }

    /// Runtime directories of machines.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// The directory of one kernel: `vmlinuz`, `initramfs`, `manifest.json`.
    #[must_use]
    pub fn kernel(&self, id: KernelId) -> PathBuf {
        self.state.join("kernels").join(id.to_string())
    }

    /// The directory of one template: `image.ext4`, `manifest.json`.
    #[must_use]
    pub fn template(&self, id: TemplateId) -> PathBuf {
        self.state.join("templates").join(id.to_string())
    }

    /// A template's image.
    #[must_use]
    pub fn template_image(&self, id: TemplateId) -> PathBuf {
        self.template(id).join("image.ext4")
    }

    /// What was downloaded of images, for the next one that needs it.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The file of one layer.
    #[must_use]
    pub fn layer(&self, id: LayerId, format: DiskFormat) -> PathBuf {
        let extension = match format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Snapshot => "cow",
        };
        self.state.join("layers").join(format!("{id}.{extension}"))
    }

    /// The directory of one checkpoint: `memory`, `manifest.json`.
    #[must_use]
    pub fn checkpoint(&self, id: CheckpointId) -> PathBuf {
        self.state.join("checkpoints").join(id.to_string())
    }

    /// The directory of one sandbox: `console.log`, `main.log`, `paused` while it is paused.
    #[must_use]
    pub fn sandbox(&self, id: SandboxId) -> PathBuf {
        self.state.join("sandboxes").join(id.to_string())
    }

    /// A private scratch directory, named by its handle's owner.
    #[must_use]
    pub fn scratch(&self, id: HandleId) -> PathBuf {
        self.state.join("scratch").join(id.to_string())
    }

    /// The runtime directory of one machine.
    #[must_use]
    pub fn machine(&self, id: SandboxId) -> PathBuf {
        self.machines().join(id.to_string())
    }

    /// The names of network namespaces.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.run.join("net")
    }

    /// What `host prepare` keeps.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.run.join("host")
    }

    /// The record of what `host prepare` did.
    #[must_use]
    pub fn prepared(&self) -> PathBuf {
        self.host().join("prepared.json")
    }

    /// Copies of caches' directories in sysfs.
    #[must_use]
    pub fn cache_copies(&self) -> PathBuf {
        self.host().join("cache")
    }

    /// What is mounted over one cache's directory.
    #[must_use]
    pub fn cache_copy(&self, cpu: u32, index: u32) -> PathBuf {
        self.cache_copies().join(format!("cpu{cpu}-index{index}"))
    }

    /// Refuses a path outside the directories that hold objects: a release removes nothing there, whatever
    /// a row says.
    ///
    /// # Errors
    /// [`HostError::Outside`]
    pub fn own(&self, path: &Path) -> Result<(), HostError> {
        match self.owns(path) {
            true => Ok(()),
            false => Err(HostError::Outside {
                path: path.to_owned(),
            }),
        }
    }

    /// Whether `path` is an entry (or below one) of a directory that holds objects: the only places
    /// where a release may remove anything.
    fn owns(&self, path: &Path) -> bool {
        let plain = path.components().all(|part| {
            !matches!(
                part,
                std::path::Component::ParentDir | std::path::Component::CurDir
            )
        });
        plain
            && self
                .collections()
                .iter()
                .chain([&self.machines(), &self.networks()])
                .any(|place| path.starts_with(place) && path != place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_of_collections_are_owned() {
        let layout = Layout::new("/s".into(), "/r".into());
        assert!(layout.owns(Path::new("/s/layers/0123.qcow2")));
        assert!(layout.owns(Path::new("/r/vm/0123/qmp")));
        for bad in [
            "/s",
            "/s/layers",
            "/s/cowslip.db",
            "/etc/passwd",
            "/s/layers/../cowslip.db",
            "/r/vm",
        ] {
            assert!(!layout.owns(Path::new(bad)), "{bad}");
        }
    }
}
