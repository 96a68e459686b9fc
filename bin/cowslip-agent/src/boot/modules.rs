//! Loads the kernel modules that the initramfs brings, in the order that it gives.
//!
//! ```text
//!   load-order ─► load()   before the disk: without them there is no guest
//!   later ──────► Later    opened here, since the initramfs goes; loaded when the agent serves
//! ```

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::BootError;
use super::console::say;

/// Paths of modules, one a line, each after those that it needs. Missing: nothing to load.
const ORDER: &str = "/modules/load-order";
/// The same for what may wait.
const LATER: &str = "/modules/later";
/// The file is compressed and the kernel unpacks it (linux/module.h).
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Loads those without which there is no guest; gives back how many were loaded.
pub(super) fn load() -> Result<usize, BootError> {
    let mut loaded = 0;
    for name in list(ORDER)? {
        let module = Module::open(name)?;
        match module.load() {
            Ok(true) => loaded += 1,
            Ok(false) => {}
            Err(e) => return Err(BootError::path("load module", &module.name, e)),
        }
    }
    Ok(loaded)
}

/// Modules that may wait until the agent serves. Held open: their files are gone by then.
#[derive(Debug, Default)]
pub(crate) struct Later(Vec<Module>);

impl Later {
    pub(super) fn open() -> Result<Self, BootError> {
        let modules = list(LATER)?.into_iter().map(Module::open);
        Ok(Self(modules.collect::<Result<_, _>>()?))
    }

    /// Loads them all. A guest without one of them is still a guest.
    pub(crate) fn load(self) {
        for module in self.0 {
            if let Err(e) = module.load() {
                say(&format!("cannot load module \"{}\": {e}", module.name));
            }
        }
    }
}

fn list(path: &str) -> Result<Vec<String>, BootError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(BootError::path("read", path, source)),
    };
    let lines = text.lines().map(str::trim);
    let names = lines.filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(names.map(str::to_owned).collect())
}

#[derive(Debug)]
struct Module {
    name: String,
    file: File,
}

impl Module {
    fn open(name: String) -> Result<Self, BootError> {
        match File::open(Path::new("/").join(&name)) {
            Ok(file) => Ok(Self { name, file }),
            Err(e) => Err(BootError::path("open module", &name, e)),
        }
    }

    /// False: there was nothing to load.
    fn load(&self) -> io::Result<bool> {
        let extension = Path::new(&self.name).extension();
        let compressed = extension.is_some_and(|e| e == "xz" || e == "zst" || e == "gz");
        let flags = if compressed {
            MODULE_INIT_COMPRESSED_FILE
        } else {
            0
        };
        match finit_module(&self.file, c"", flags) {
            Ok(()) => Ok(true),
            // Built in, or loaded already; or a driver that finds no device of its own, or another
            // hypervisor than its own, and says so: no reason not to boot.
            Err(Errno::EXIST | Errno::NODEV | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
