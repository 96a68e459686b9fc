//! The guest's console: from its monitor into a file of bounded size.
//!
//! The monitor drops what is written while nobody reads (a socket without a connection, a pipe that is
//! full), so a guest never waits for an engine that is down. What a guest writes is not ours to trust, neither
//! its bytes (kept as they are) nor their number (the log is cut to its newest half past its bound).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The least bound, in bytes: below it nothing useful would be kept.
const BOUND_MIN: u64 = 16 << 10;
/// Bytes read from the socket at once.
const CHUNK: usize = 32 << 10;

/// A file that is appended to and keeps its newest bytes.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    file: File,
    length: u64,
    bound: u64,
}

impl BoundedLog {
    /// Opens the log at `path`, making it where it is not there.
    pub(crate) fn open(path: &Path, bound: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            file,
            length,
            bound: bound.max(BOUND_MIN),
        })
    }

    /// Bytes that are in it.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Appends, then cuts where the bound is passed.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        if self.length > self.bound {
            self.cut()
        } else {
            Ok(())
        }
    }

    /// Keeps the newest half, from the beginning of a line where there is one: moved to the front
    /// first and cut off after, so that no instant has neither.
    fn cut(&mut self) -> io::Result<()> {
        let mut from = self.length.saturating_sub(self.bound / 2);
        let mut chunk = vec![0; CHUNK];
        let count = self.file.read_at(&mut chunk, from)?;
        if let Some(end) = chunk.iter().take(count).position(|&byte| byte == b'\n') {
            from += end as u64 + 1;
        }
        let mut to = 0;
        loop {
            let count = self.file.read_at(&mut chunk, from + to)?;
            let Some(part) = chunk.get(..count).filter(|part| !part.is_empty()) else {
                break;
            };
            self.file.write_all_at(part, to)?;
            to += count as u64;
        }
        self.file.set_len(to)?;
        self.length = to;
        Ok(())
    }
}

/// Moves the console's bytes into the log until the monitor closes its end, and shows them to `listen`. A log
/// that cannot be written (a full disk) loses bytes; the guest goes on.
pub(crate) async fn drain(
    mut stream: impl AsyncRead + Unpin,
    mut log: BoundedLog,
    mut listen: impl FnMut(&[u8]),
) {
    let mut chunk = vec![0; CHUNK];
    let mut told = false;
    loop {
        let count = match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        listen(chunk.get(..count).unwrap_or(&[]));
        let appended = tokio::task::spawn_blocking(move || {
            let result = log.append(chunk.get(..count).unwrap_or(&[]));
            (log, chunk, result)
        })
        .await;
        let Ok((same_log, same_chunk, result)) = appended else {
            return;
        };
        (log, chunk) = (same_log, same_chunk);
        if let (Err(error), false) = (&result, told) {
            tracing::warn!(%error, "a console log cannot be written; output is dropped");
        }
        told = result.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_its_newest_bytes_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = BoundedLog::open(&path, 64 << 10).unwrap();
        for line in 0..20_000 {
            log.append(format!("line {line}\n").as_bytes()).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            assert!(length <= 64 << 10, "{length} bytes");
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.len() >= 32 << 10,
            "more than half was cut: {}",
            text.len()
        );
        let first: u32 = text
            .lines()
            .next()
            .unwrap()
            .strip_prefix("line ")
            .unwrap()
            .parse()
            .unwrap();
        let expected: String = (first..20_000)
            .map(|line| format!("line {line}\n"))
            .collect();
        assert_eq!(text, expected);
    }

    #[test]
    fn a_log_is_continued_and_a_large_one_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        let mut log = BoundedLog::open(&path, 64 << 10).unwrap();
        log.append(b"the end").unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 32 << 10);
        assert!(bytes.ends_with(b"xthe end"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(BoundedLog::open(&path, 1 << 20).is_err());
    }
}
