//! What a monitor says of itself. It may repeat what its guest sent it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use cowslip_host::head;

/// Bytes of a monitor's own messages that are shown.
const LAST_MAX: usize = 2 << 10;

/// `bytes` as one line of text: nothing that steers a terminal is passed on. None where nothing is
/// left; its newest `max` bytes where there are more.
pub(crate) fn harmless(bytes: &[u8], max: usize) -> Option<String> {
    let newest = bytes
        .get(bytes.len().saturating_sub(max)..)
        .unwrap_or(bytes);
    let text: String = String::from_utf8_lossy(newest)
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect();
    let text = text.trim().replace('\n', "; ");
    (!text.is_empty()).then_some(text)
}

/// The end of the messages in the file at `path`.
pub(crate) fn last(path: &Path) -> Option<String> {
    harmless(&newest(path)?, LAST_MAX)
}

/// The last lines of the messages in the file at `path`, of those behind its first `before` bytes (of all where
/// it was cut since); the first may be the end of one.
pub(crate) fn last_lines(path: &Path, before: u64) -> Vec<String> {
    let bytes = newest_since(path, before).unwrap_or_default();
    let lines = bytes.split(|&byte| byte == b'\n');
    lines.filter_map(|line| harmless(line, LAST_MAX)).collect()
}

fn newest(path: &Path) -> Option<Vec<u8>> {
    newest_since(path, 0)
}

fn newest_since(path: &Path, before: u64) -> Option<Vec<u8>> {
    // A jailed monitor may have put anything there.
    let file = head::open(path).ok()??;
    let length = file.metadata().ok()?.len();
    let mut bytes =
        vec![0; usize::try_from(length).map_or(LAST_MAX, |length| length.min(LAST_MAX))];
    let before = if before > length { 0 } else { before };
    let from = length.saturating_sub(LAST_MAX as u64).max(before);
    let count = file.read_at(&mut bytes, from).ok()?;
    bytes.truncate(count);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_short_and_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor.log");
        assert_eq!(last(&path), None);
        std::fs::write(&path, b"  \n").unwrap();
        assert_eq!(last(&path), None);
        let mut text = vec![b'a'; 10_000];
        text.extend_from_slice(b"\nqemu: \x1b[2Jno\xff such\nfile\n");
        std::fs::write(&path, text).unwrap();
        let words = last(&path).unwrap();
        assert!(
            words.len() < 2100 && words.ends_with("aa; qemu:  [2Jno\u{fffd} such; file"),
            "{words}"
        );
    }

    #[test]
    fn lines_from_before_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "old\nnew\n").unwrap();
        assert_eq!(last_lines(&path, 0), ["old", "new"]);
        assert_eq!(last_lines(&path, 4), ["new"]);
        assert_eq!(last_lines(&path, 8), [""; 0]);
        // It was cut meanwhile.
        assert_eq!(last_lines(&path, 9), ["old", "new"]);
    }
}
