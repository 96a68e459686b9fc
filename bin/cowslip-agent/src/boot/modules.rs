//! Loads the kernel modules that the initramfs brings, in the order that it gives.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::BootError;

/// Paths of modules, one a line, each after those that it needs. Missing: nothing to load.
const ORDER: &str = "/modules/load-order";
/// The file is compressed and the kernel unpacks it (linux/module.h).
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Loads them all; gives back how many were loaded.
pub(super) fn load() -> Result<usize, BootError> {
    let order = match fs::read_to_string(ORDER) {
        Ok(order) => order,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(BootError::path("read", ORDER, source)),
    };
    let mut loaded = 0;
    for line in order
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let path = Path::new("/").join(line);
        let file = File::open(&path).map_err(|e| BootError::path("open module", line, e))?;
        let compressed = path
            .extension()
            .is_some_and(|e| e == "xz" || e == "zst" || e == "gz");
        let flags = if compressed {
            MODULE_INIT_COMPRESSED_FILE
        } else {
            0
        };
        match finit_module(&file, c"", flags) {
            Ok(()) => loaded += 1,
            // Built in, or loaded already.
            Err(Errno::EXIST) => {}
            // A driver that finds no device of its own says so: no reason not to boot.
            Err(Errno::NODEV) => {}
            Err(e) => return Err(BootError::path("load module", line, e.into())),
        }
    }
    Ok(loaded)
}
