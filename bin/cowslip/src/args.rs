//! The command line's grammar. What a verb takes stands with the verb, in `commands`.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use cowslip_model::api::exit;

use crate::exit::Failure;
use crate::{commands, output};

/// microVM sandboxes for untrusted code
#[derive(Debug, Parser)]
#[command(
    name = "cowslip",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The engine's state directory
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "COWSLIP_STATE_DIR",
        hide_env_values = true
    )]
    pub(crate) state_dir: Option<PathBuf>,
    /// The engine's run directory, where its socket is
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "COWSLIP_RUN_DIR",
        hide_env_values = true
    )]
    pub(crate) run_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print ids only, and no messages
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// What to log on standard error: off, error, warn, info, debug, trace, or a filter
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "COWSLIP_LOG",
        hide_env_values = true
    )]
    pub(crate) log: Option<String>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a sandbox, run a command in it, and end with the command's exit code
    Run(commands::run::Run),
    /// Make a sandbox without starting it
    Create(commands::create::Create),
    /// Boot stopped sandboxes
    Start(commands::lifecycle::Start),
    /// Shut sandboxes down; their disks stay
    Stop(commands::lifecycle::Stop),
    /// Remove sandboxes and all they hold
    Rm(commands::lifecycle::Rm),
    /// List sandboxes
    #[command(visible_alias = "ps")]
    Ls(commands::ls::Ls),
    /// Show all there is to know about sandboxes, as JSON
    Inspect(commands::inspect::Inspect),
    /// Print what a sandbox's main command, or its console, wrote
    Logs(commands::logs::Logs),
    /// Run a command in a running sandbox
    Exec(commands::exec::Exec),
    /// Open a shell in a running sandbox
    Shell(commands::exec::Shell),
    /// Let ports of this host lead to ports of a running sandbox
    Forward(commands::forward::Forward),
    /// Copy files between a sandbox and this host
    Cp(commands::cp::Cp),
    /// Take checkpoints of running sandboxes, and keep them
    #[command(subcommand)]
    Checkpoint(commands::checkpoint::Checkpoint),
    /// Make sandboxes from a checkpoint
    Fork(commands::fork::Fork),
    /// Make one sandbox from a checkpoint
    Restore(commands::fork::Restore),
    /// Take sandboxes to disk and free their memory
    Pause(commands::lifecycle::Pause),
    /// Bring paused sandboxes back
    Resume(commands::lifecycle::Resume),
    /// Show and change what sandboxes may reach, and who may reach them
    #[command(subcommand)]
    Network(commands::network::Network),
    /// List the ports of this host that lead to sandboxes
    Port(commands::network::Port),
    /// Import and keep templates: the root file systems of sandboxes
    #[command(subcommand)]
    Template(commands::template::Template),
    /// Say how much each layer of a sandbox's or a checkpoint's disk changed
    Diff(commands::diff::Diff),
    /// Import and keep guest kernels
    #[command(subcommand)]
    Kernel(commands::kernel::Kernel),
    /// Print what happened
    Events(commands::events::Events),
    /// Say what this host can do, what is missing and how to mend it
    Doctor,
    /// Give this host what it lacks, and take it back
    #[command(subcommand)]
    Host(commands::prepare::Host),
    /// Say what the engine is and uses
    Info,
    /// Release whatever no sandbox owns
    Gc(commands::host::Gc),
    /// Run the engine in the foreground
    Serve(commands::serve::Serve),
    /// Print the versions of this command and of the engine
    Version,
    /// Print a completion script for a shell
    Completion(commands::completion::Completion),
}

/// Shows why the command line was not understood, in the form of every other failure, or the help
/// that was asked for; gives the exit code.
pub(crate) fn refuse(error: &clap::Error) -> u8 {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // A reader that went away wanted no more of it.
        let _ = error.print();
        return 0;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return exit::ENGINE;
    }
    let failure = in_words(&error.render().to_string());
    output::failure(&failure);
    failure.exit
}

/// clap's message: the reason up to the first empty line, then tips, then the usage.
fn in_words(text: &str) -> Failure {
    let reason: Vec<&str> = text
        .trim_start_matches("error: ")
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let tip = text
        .lines()
        .map(str::trim)
        .find_map(|line| line.strip_prefix("tip: "));
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let failure = Failure::usage(reason.join(" "));
    match (tip, usage) {
        (Some(tip), _) => failure.hint(tip),
        (None, Some(usage)) => failure.hint(format!("usage: {usage}")),
        (None, None) => failure.hint("for what can be said: --help"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_template_belongs_to_the_command() {
        for line in [
            "cowslip run --rm -it web sh -c ls --json -q",
            "cowslip run --rm -it web -- sh -c ls --json -q",
        ] {
            let cli = parse(line);
            assert!(!cli.global.json && !cli.global.quiet, "{line}");
            let Command::Run(run) = cli.command else {
                panic!("{line}")
            };
            assert!(run.rm && run.session.interactive && run.session.tty);
            assert_eq!(run.template, "web");
            assert_eq!(run.argv, ["sh", "-c", "ls", "--json", "-q"], "{line}");
        }
        let Command::Exec(exec) = parse("cowslip exec -u 1:1 web -- --odd -x").command else {
            panic!()
        };
        assert_eq!(exec.argv, ["--odd", "-x"]);
        assert_eq!(exec.process.user.as_deref(), Some("1:1"));
    }

    #[test]
    fn global_options_stand_anywhere() {
        for line in [
            "cowslip --json ls",
            "cowslip ls --json",
            "cowslip ps --json",
        ] {
            assert!(parse(line).global.json, "{line}");
        }
        assert_eq!(
            parse("cowslip ls --state-dir /s")
                .global
                .state_dir
                .as_deref(),
            Some(std::path::Path::new("/s"))
        );
    }

    #[test]
    fn usage_errors_look_like_all_others() {
        let shown = |line: &str| {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            in_words(&error.render().to_string()).to_string()
        };
        assert_eq!(
            shown("cowslip ls --formt x"),
            "cowslip: unexpected argument '--formt' found\n  hint: usage: cowslip ls [OPTIONS]"
        );
        assert_eq!(
            shown("cowslip inspct x"),
            "cowslip: unrecognized subcommand 'inspct'\n  hint: a similar subcommand exists: 'inspect'"
        );
        assert_eq!(
            shown("cowslip start"),
            "cowslip: the following required arguments were not provided: <SANDBOX>...\n  \
             hint: usage: cowslip start <SANDBOX>..."
        );
    }

    #[test]
    fn bad_values_are_refused_with_their_reason() {
        for (line, reason) in [
            ("cowslip run --memory lots web true", "is not a size"),
            ("cowslip run --ttl soon web true", "is not a time span"),
            ("cowslip run --name ../x web true", "has the character '/'"),
            ("cowslip run --cpus 0 web true", "0 is not in"),
            ("cowslip run --memory 0 web true", "at least 1 MiB"),
            ("cowslip fork base --count 0", "0 is not in"),
            ("cowslip rm", "SANDBOX"),
            ("cowslip exec web", "CMD"),
            ("cowslip forward web", "GUESTPORT"),
            ("cowslip forward web 80", "two ports"),
        ] {
            let error = Cli::try_parse_from(line.split_whitespace())
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
