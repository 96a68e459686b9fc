//! Small files of the guest's /etc, which is anyone's: never through a link, and never into a device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where they are.
pub(crate) const ETC: &str = "/etc";

/// Makes a regular file of this content; one that has it is left alone. Whoever reads it meanwhile finds
/// the old one or the new one.
pub(crate) fn write(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    if !directory.is_dir() {
        fs::create_dir(directory)?;
    }
    let path = directory.join(name);
    if is_regular(&path) && has(&path, content) {
        return Ok(());
    }
    let temporary = directory.join(format!(".{name}.cowslip"));
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)?;
    new.write_all(content)?;
    fs::rename(&temporary, path)
}

/// The content of a file, wherever a link leads; nothing where there is no regular file; `None` where it
/// has more than `limit` bytes.
pub(crate) fn read(directory: &Path, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open(&directory.join(name)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(Vec::new())),
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Ok(Some(Vec::new()));
    }
    let mut content = Vec::new();
    let length = file.take(limit + 1).read_to_end(&mut content)?;
    Ok((length as u64 <= limit).then_some(content))
}

fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

fn has(path: &Path, content: &[u8]) -> bool {
    let limit = content.len() as u64 + 1;
    let mut found = Vec::new();
    let read = open(path).and_then(|file| file.take(limit).read_to_end(&mut found));
    read.is_ok() && found == content
}

/// A pipe without a writer does not hold us up.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}
