//! A disk whose every write is logged, with a file system and a state directory on it; and the same disk
//! after its power was cut.
//!
//! ```text
//!   state directory ─ ext4 ─ log-writes ─┬─ loop ─ image      while it is recorded
//!                                        └─ loop ─ log
//!   state directory ─ ext4 ─ loop ─ image at a cut            afterwards
//! ```
//!
//! After a cut the file system is on another device, as a disk may be after a boot.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use cowslip_host::clone::clone_contents;

use super::log::{Cut, Log};
use crate::commands::{Mapped, dmsetup, losetup, said};

/// Size of the disk. What is not written of it takes no space.
const SIZE: u64 = 96 << 20;
const LOG_SIZE: u64 = 1 << 30;

/// Files of one test, and where the disk is mounted.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// Makes an empty file system.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = Self { directory };
        fs::create_dir(place.mount()).unwrap();
        fs::create_dir(place.run()).unwrap();
        File::create(place.file("image"))
            .unwrap()
            .set_len(SIZE)
            .unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        // The kernel shall have nothing left to do: it would be in the log.
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        let _ = said(mkfs.args(["-J", "size=4"]).arg(place.file("image")));
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mount(&self) -> PathBuf {
        self.file("mount")
    }

    /// The state directory, on the disk.
    pub(crate) fn state(&self) -> PathBuf {
        self.mount().join("state")
    }

    /// The run directory, in memory on a host.
    pub(crate) fn run(&self) -> PathBuf {
        self.file("run")
    }

    /// What a boot does to it.
    pub(crate) fn forget_run(&self) {
        fs::remove_dir_all(self.run()).unwrap();
        fs::create_dir(self.run()).unwrap();
    }

    /// Mounts the image as it is.
    pub(crate) fn mounted(&self) -> Mounted {
        Mounted::of(&self.file("image"), &self.mount())
    }

    /// Begins to log; what the disk holds now is where every cut begins.
    pub(crate) fn recorded(&self) -> Recorded {
        copy(&self.file("image"), &self.file("base"));
        let log = self.file("log");
        File::create(&log).unwrap().set_len(LOG_SIZE).unwrap();
        let attach = |path: &Path| losetup(&["--find", "--show", path.to_str().unwrap()]);
        let loops = [attach(&self.file("image")), attach(&log)];
        let name = format!("vm-power-{}", std::process::id());
        let table = format!("0 {} log-writes {} {}", SIZE / 512, loops[0], loops[1]);
        let device = Mapped::new(&name, &table);
        // They go with the device.
        let _ = losetup(&["--detach", &loops[0], &loops[1]]);
        let mounted = Mounted::of(&device.node(), &self.mount());
        Recorded {
            mounted,
            device,
            name,
        }
    }

    /// The log, once the disk is no more recorded.
    pub(crate) fn log(&self) -> Log {
        Log::read(&self.file("log"))
    }

    /// The disk as `cut` leaves it. `done` is how many entries the base already has; cuts come in order.
    pub(crate) fn cut(&self, log: &Log, cut: &Cut, done: &mut usize) -> Mounted {
        let open = |name| {
            let path = self.file(name);
            File::options().read(true).write(true).open(path).unwrap()
        };
        log.replay(*done..cut.whole, &open("base"));
        *done = cut.whole;
        copy(&self.file("base"), &self.file("image"));
        log.replay_rest(cut, &open("image"));
        self.mounted()
    }
}

fn copy(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    clone_contents(&from, &to, SIZE).unwrap();
}

/// A mounted disk.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    fn of(source: &Path, target: &Path) -> Self {
        let mut mount = Command::new("mount");
        if source.is_file() {
            mount.args(["-o", "loop"]);
        }
        let _ = said(mount.args(["-t", "ext4"]).arg(source).arg(target));
        Self(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).output();
        if !std::thread::panicking() {
            let unmounted = unmounted.unwrap();
            assert!(unmounted.status.success(), "{unmounted:?}");
        }
    }
}

/// A mounted disk whose writes are logged.
pub(crate) struct Recorded {
    // Fields are dropped in this order.
    #[expect(dead_code, reason = "held, not used")]
    mounted: Mounted,
    #[expect(dead_code, reason = "held, not used")]
    device: Mapped,
    name: String,
}

impl Recorded {
    /// Marks this instant in the log.
    pub(crate) fn mark(&self, word: &str) {
        let _ = dmsetup(&["message", &self.name, "0", "mark", word]);
    }
}
