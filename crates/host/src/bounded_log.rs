//! A log file that cannot fill the disk: past its bound it is cut to its newest half.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// An open log. What is written to it may come from a hostile guest.
#[derive(Debug)]
pub struct BoundedLog {
    file: File,
    length: u64,
    bound: u64,
}

impl BoundedLog {
    /// Opens (or makes) the log at `path`, to be kept at `bound` bytes at most.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, bound: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            length,
            bound: bound.max(2),
        })
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends; the oldest half goes first where there is no room.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let half = usize::try_from(self.bound / 2).unwrap_or(usize::MAX);
        let bytes = bytes
            .get(bytes.len().saturating_sub(half)..)
            .unwrap_or(bytes);
        if self.length + bytes.len() as u64 > self.bound {
            self.keep_newest(half as u64)?;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn keep_newest(&mut self, keep: u64) -> io::Result<()> {
        let mut tail = Vec::new();
        self.file
            .seek(SeekFrom::Start(self.length.saturating_sub(keep)))?;
        self.file.read_to_end(&mut tail)?;
        // Begin with a whole line, where there is one.
        let start = tail
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.set_len(0)?;
        self.file.write_all(&tail[start..])?;
        self.length = (tail.len() - start) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedLog::open(&path, 1000).unwrap();
        for number in 0..10_000 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("line ") && text.ends_with("line 9999\n"),
            "{text}"
        );
        log.append(&[b'x'; 5000]).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
    }
}
