//! Options of a process in a guest, and how the user is attached to it.

use std::io::IsTerminal;

use clap::Args;
use cowslip_model::Lifetime;
use cowslip_model::api::ExecRequest;

use super::values::{self, Env};
use crate::exit::Failure;
use crate::terminal;

/// How the user is attached.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Attach {
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
}

/// What a process is like.
#[derive(Debug, Default, Args)]
pub(crate) struct Process {
    #[command(flatten)]
    pub(crate) env: Env,
    /// Working directory in the sandbox
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User in the sandbox: a name, UID or UID:GID
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Kill the command after this time, with exit code 124
    #[arg(long, value_name = "SPAN", value_parser = values::lifetime)]
    pub(crate) timeout: Option<Lifetime>,
}

impl Attach {
    /// Checks that there is a terminal where one was asked for.
    pub(crate) fn check(self) -> Result<(), Failure> {
        self.check_with(
            std::io::stdin().is_terminal(),
            std::io::stdout().is_terminal(),
        )
    }

    fn check_with(self, stdin: bool, stdout: bool) -> Result<(), Failure> {
        let missing = if self.interactive {
            !stdin
        } else {
            !stdin && !stdout
        };
        if self.tty && missing {
            let device = if self.interactive {
                "standard input"
            } else {
                "standard output"
            };
            return Err(
                Failure::usage(format!("-t needs a terminal, and {device} is none"))
                    .hint("leave -t out, or give the command a terminal: script -qc \"cowslip …\""),
            );
        }
        Ok(())
    }

    /// Whether every key goes to the guest.
    pub(crate) fn raw(self) -> bool {
        self.tty && self.interactive
    }
}

impl Process {
    /// The request for such a process.
    pub(crate) fn request(
        self,
        argv: Vec<String>,
        attach: Attach,
        detach: bool,
    ) -> Result<ExecRequest, Failure> {
        let mut env = self.env.collect()?;
        if attach.tty
            && let Ok(term) = std::env::var("TERM")
        {
            env.entry("TERM".to_owned()).or_insert(term);
        }
        Ok(ExecRequest {
            argv,
            env,
            workdir: self.workdir,
            user: self.user,
            stdin: attach.interactive && !detach,
            terminal: attach.tty.then(terminal::size),
            timeout: self.timeout,
            detach,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_is_not_there_is_refused() {
        let attach = |interactive, tty| Attach { interactive, tty };
        assert!(attach(true, true).check_with(true, false).is_ok());
        assert!(attach(false, true).check_with(false, true).is_ok());
        assert!(attach(true, false).check_with(false, false).is_ok());
        let error = attach(true, true).check_with(false, true).unwrap_err();
        assert!(
            error.to_string().contains("standard input is none"),
            "{error}"
        );
        assert!(attach(false, true).check_with(false, false).is_err());
    }
}
