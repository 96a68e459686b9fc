//! The command line of cowslip, and the engine's process (`cowslip serve`).
//!
//! The command line is a client: all it knows it has from the engine's HTTP API, and where no engine
//! listens it starts one. Only this crate owns a terminal.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod autostart;
mod build;
mod client;
mod commands;
mod cp;
mod daemon;
mod exit;
mod output;
mod paths;
mod signals;
mod terminal;

use clap::Parser;

use crate::args::Cli;

fn main() {
    // Both the engine and what starts it wait for children.
    cowslip_host::process::keep_statuses();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => std::process::exit(i32::from(args::refuse(&error))),
    };
    let code = match commands::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            terminal::restore();
            output::failure(&failure);
            failure.exit
        }
    };
    // Not by returning: a thread may still sit in a read of standard input.
    terminal::exit(code)
}
