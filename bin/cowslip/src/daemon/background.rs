//! Leaving the terminal that started us, and telling whoever waits there how it went.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;

use crate::autostart::Readiness;
use crate::exit::Failure;
use crate::output;

/// The pipe to the command that started this engine.
#[derive(Debug)]
pub(super) struct Reporter {
    pipe: RefCell<Option<OwnedFd>>,
}

impl Reporter {
    /// Moves to a session of its own and takes the pipe off standard output, so that nothing but a
    /// readiness message ever goes into it.
    pub(super) fn detach() -> Result<Self, Failure> {
        // Fails for a process-group leader, which only a person's shell makes of us.
        let _ = rustix::process::setsid();
        let failed =
            |error: rustix::io::Errno| Failure::io("take over standard output", &error.into());
        let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(failed)?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| Failure::io("open \"/dev/null\"", &error))?;
        rustix::stdio::dup2_stdout(&null).map_err(failed)?;
        rustix::stdio::dup2_stdin(&null).map_err(failed)?;
        Ok(Self {
            pipe: RefCell::new(Some(pipe)),
        })
    }

    /// Says how it went, once, and closes the pipe.
    pub(super) fn say(&self, readiness: &Readiness) {
        let Some(pipe) = self.pipe.take() else { return };
        if let Ok(mut line) = serde_json::to_vec(readiness) {
            line.push(b'\n');
            // Whoever started us may have been interrupted; the engine is there all the same.
            let _ = output::write_all(std::fs::File::from(pipe), &line);
        }
    }

    /// Says that it did not work.
    pub(super) fn failed(&self, failure: &Failure) {
        let error = failure.error.clone();
        self.say(&if super::is_held(failure) {
            Readiness::Held { error }
        } else {
            Readiness::Failed { error }
        });
    }
}
