//! A few words on the guest's console: all that is seen of a guest that does not come up.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Makes the console standard input, output and error, where there is one.
pub(crate) fn attach() {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(console) = rustix::fs::open("/dev/console", flags, Mode::empty()) else {
        return;
    };
    // A console that cannot be used is no reason not to boot.
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

/// Prints one line.
pub(crate) fn say(message: &str) {
    let line = format!("cowslip-agent: {message}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// `a/b` for messages.
pub(crate) fn show(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
