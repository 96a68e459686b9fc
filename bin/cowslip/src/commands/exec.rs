//! `exec` and `shell`: a command in a running sandbox.

use clap::Args;

use super::Context;
use super::process::{Attach, Process};
use super::session::{self, Wanted};
use crate::client::Path;
use crate::exit::Failure;

/// Takes the shell that is there.
const ANY_SHELL: [&str; 3] = [
    "sh",
    "-c",
    "command -v bash >/dev/null 2>&1 && exec bash; exec sh",
];

/// Run a command in a running sandbox.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) attach: Attach,
    #[command(flatten)]
    pub(crate) process: Process,
    /// Leave the command running in the background
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandbox: String,
    /// The command and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) argv: Vec<String>,
}

/// Open a shell in a running sandbox.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    process: Process,
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

impl Exec {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let Self {
            attach,
            process,
            detach,
            sandbox,
            argv,
        } = self;
        if !detach {
            attach.check()?;
        }
        let request = process.request(argv, attach, detach)?;
        let path = Path::to("sandboxes").segment(&sandbox).segment("exec");
        let wanted = Wanted {
            attach,
            detach,
            timings: false,
        };
        let outcome = session::follow(context, path, &request, wanted).await?;
        Ok(outcome.code.unwrap_or(0))
    }
}

impl Shell {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, Failure> {
        use std::io::IsTerminal;
        let tty = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let exec = Exec {
            attach: Attach {
                interactive: true,
                tty,
            },
            process: self.process,
            detach: false,
            sandbox: self.sandbox,
            argv: ANY_SHELL.map(str::to_owned).to_vec(),
        };
        exec.run(context).await
    }
}
