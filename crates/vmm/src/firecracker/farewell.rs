//! What a guest's kernel says on its console at the end.
//!
//! Firecracker has no power to cut: a guest that powers itself off stands still for ever, and one that panics
//! resets itself as one that shuts down does. The kernel says what it does, on every console level. A guest that
//! says so without doing it only ends itself.

use tokio::sync::watch;

/// Bytes of a line that are looked at.
const LINE_MAX: usize = 256;
/// What a kernel says that was told to power off: of a release, and of those that say that they cannot.
const OFF: [&str; 3] = [
    "reboot: System halted",
    "reboot: Power down",
    "reboot: Power off not available: System halted instead",
];
const PANIC: &str = "Kernel panic - not syncing";

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It powered itself off; its machine stands still.
    Off,
    /// Its kernel panicked, with these words.
    Panic(String),
}

/// Reads what a console prints.
pub(super) struct Listener {
    line: Vec<u8>,
    heard: watch::Sender<Option<Farewell>>,
}

impl Listener {
    pub(super) fn new() -> (Self, watch::Receiver<Option<Farewell>>) {
        let (heard, receiver) = watch::channel(None);
        let line = Vec::new();
        (Self { line, heard }, receiver)
    }

    pub(super) fn listen(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                if let Some(farewell) = farewell(&self.line) {
                    self.heard.send_replace(Some(farewell));
                }
                self.line.clear();
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
    }
}

fn farewell(line: &[u8]) -> Option<Farewell> {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    // `[   12.345678] `, where the kernel tells times.
    let words = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((time, words)) if time.trim().parse::<f64>().is_ok() => words,
        _ => line,
    };
    if OFF.contains(&words) {
        return Some(Farewell::Off);
    }
    let panic = words.strip_prefix(PANIC)?.trim_start_matches(": ");
    let panic: String = panic.chars().filter(|c| !c.is_control()).collect();
    Some(Farewell::Panic(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_kernel_are_heard() {
        let (mut listener, heard) = Listener::new();
        let said = |listener: &mut Listener, bytes: &[u8]| {
            listener.listen(bytes);
            heard.borrow().clone()
        };
        for nothing in [
            "reboot: System",
            " halted soon\r\n",
            "echo reboot: Power down\n",
            "[x] reboot: Power down\n",
        ] {
            assert_eq!(said(&mut listener, nothing.as_bytes()), None, "{nothing}");
        }
        assert_eq!(said(&mut listener, &[b'x'; 1 << 20]), None);
        assert_eq!(said(&mut listener, b"\n[    3.207011] reboot: Syst"), None);
        assert_eq!(said(&mut listener, b"em halted\r\n"), Some(Farewell::Off));
        let panic = b"[ 9.1] Kernel panic - not syncing: Attempted to kill init!\x1b[31m\r\n";
        let words = "Attempted to kill init![31m".to_owned();
        assert_eq!(said(&mut listener, panic), Some(Farewell::Panic(words)));
    }
}
