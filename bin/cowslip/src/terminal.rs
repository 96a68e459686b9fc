//! The user's terminal: its size, and raw mode that is always undone.
//!
//! ```text
//!  cooked ──RawMode::enter──► raw ──drop · panic · restore()──► cooked
//! ```
//!
//! The settings to go back to are kept in one global place, so that the guard, the panic hook and
//! whoever ends the process (it runs no destructors) all undo the same thing, once.

use std::io;
use std::sync::Mutex;

use cowslip_model::api::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::exit::Failure;

/// The settings to go back to, while the terminal is raw.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// The size of a terminal that does not tell its own.
const DEFAULT_SIZE: WindowSize = WindowSize {
    rows: 24,
    columns: 80,
};

/// Standard input's terminal is raw for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes standard input's terminal raw: every key goes to the guest, ^C included.
    pub(crate) fn enter() -> Result<Self, Failure> {
        let failed = |error: rustix::io::Errno| {
            Failure::io("make the terminal raw", &io::Error::from(error))
        };
        let stdin = io::stdin();
        let cooked = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = cooked.clone();
        raw.make_raw();
        install_panic_hook();
        keep(Some(cooked));
        let guard = Self(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes raw mode, if it is on. Safe to call at any time, any number of times.
pub(crate) fn restore() {
    if let Some(cooked) = keep(None) {
        // `Drain`, not `Flush`: what was typed ahead belongs to the shell. A terminal that is gone
        // has no mode to undo.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &cooked);
    }
}

/// Ends the process, with the terminal as it was found.
pub(crate) fn exit(code: u8) -> ! {
    restore();
    std::process::exit(i32::from(code))
}

fn keep(settings: Option<Termios>) -> Option<Termios> {
    let mut place = COOKED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    std::mem::replace(&mut place, settings)
}

fn install_panic_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
    });
}

/// The size of the terminal on standard output, or else on standard input.
pub(crate) fn size() -> WindowSize {
    let told = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match told {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        _ => DEFAULT_SIZE,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    /// A terminal of our own in the place of standard input, given back at the end.
    fn with_terminal(test: impl FnOnce(&OwnedFd)) {
        let leader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&leader).unwrap();
        unlockpt(&leader).unwrap();
        let name = ptsname(&leader, Vec::new()).unwrap();
        let terminal =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let before = rustix::io::dup(rustix::stdio::stdin()).unwrap();
        rustix::stdio::dup2_stdin(&terminal).unwrap();
        test(&terminal);
        rustix::stdio::dup2_stdin(&before).unwrap();
    }

    fn echoes(terminal: &impl AsFd) -> bool {
        tcgetattr(terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO)
    }

    #[test]
    fn raw_mode_is_undone_by_drop_and_by_panic() {
        // covers R54
        with_terminal(|terminal| {
            assert!(echoes(terminal));
            let raw = RawMode::enter().unwrap();
            assert!(!echoes(terminal));
            drop(raw);
            assert!(echoes(terminal));

            let raw = RawMode::enter().unwrap();
            // The guard is leaked: only the hook can undo it.
            let result = std::thread::spawn(move || {
                std::mem::forget(raw);
                panic!("on purpose");
            })
            .join();
            assert!(result.is_err());
            assert!(echoes(terminal));
            restore();
        });
    }
}
