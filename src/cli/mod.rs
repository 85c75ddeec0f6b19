//! The command line: reads what was typed, and dispatches. One file for each command.
//!
//! `serve` is the daemon; all others are clients of its HTTP API, except where a command works without a daemon
//! (`cleanup`, `models`, `config`, `doctor`). Only here is anything printed.

mod args;
mod backup;
mod bar;
mod bench;
mod cleanup;
mod client;
mod config;
mod doctor;
mod download;
mod error;
mod follow;
mod jobs;
mod models;
mod output;
mod queue;
mod reload;
mod replay;
mod serve;
mod shell;
mod sse;
mod submit;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::error::{CliError, Exit};
use self::{args::Global, error::Result};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the job failed; 2 usage or configuration; 3 the daemon is not \
                          reachable; 4 not found; 130 interrupted.";

/// An image workshop in one box: a drop folder, a durable queue and a GPU worker
#[derive(Parser, Debug)]
#[command(name = "atelier", version, about, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon in the foreground
    Serve(serve::Serve),
    /// Hand in a job
    Submit(Box<submit::Submit>),
    /// Make a job again from its manifest, and compare
    Replay(replay::Replay),
    /// List, show, watch, cancel, retry and remove jobs
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    /// Have the running daemon read its configuration again
    Reload,
    /// Look at the queue, pause it and resume it
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Remove what is past its time, with the daemon running or not
    Cleanup(cleanup::Cleanup),
    /// Copy everything into a folder, with the daemon running or not
    Backup(backup::Backup),
    /// Make a data folder of what `backup` has copied
    Restore(backup::Restore),
    /// List, pull, check and remove models
    #[command(subcommand)]
    Models(models::Models),
    /// Check this machine, the configuration, the worker and the daemon
    Doctor,
    /// Run a short standard set of jobs and print figures for a bug report
    Bench,
    /// Show and check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the completions of a shell
    Completions(shell::Completions),
    /// Print the manual page, or write all of them
    Man(shell::Man),
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match run(cli) {
        Ok(()) => Exit::Done,
        Err(error) => {
            output::complain(&error);
            error.exit
        }
    };
    ExitCode::from(exit.code())
}

fn run(cli: Cli) -> Result {
    let global = cli.global;
    match cli.command {
        // The daemon has a runtime of its own.
        Command::Serve(serve) => serve::run(&global, &serve),
        Command::Config(command) => config::run(&global, &command),
        Command::Reload => reload::run(&global),
        Command::Completions(completions) => shell::completions(completions),
        Command::Man(man) => shell::man(&man),
        Command::Submit(submit) => wait_for(submit::run(&global, *submit)),
        Command::Replay(replay) => wait_for(replay::run(&global, replay)),
        Command::Jobs(jobs) => wait_for(jobs::run(&global, jobs)),
        Command::Queue(queue) => wait_for(queue::run(&global, queue)),
        Command::Cleanup(cleanup) => wait_for(cleanup::run(&global, cleanup)),
        Command::Backup(args) => wait_for(backup::backup(&global, &args)),
        Command::Restore(args) => wait_for(backup::restore(&global, &args)),
        Command::Models(models) => wait_for(models::run(&global, models)),
        Command::Bench => wait_for(bench::run(&global)),
        Command::Doctor => wait_for(doctor::run(&global)),
    }
}

fn wait_for(command: impl Future<Output = Result>) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("the runtime cannot start: {error}")))?;
    let result = runtime.block_on(command);
    // A read that hangs on a dead mount must not keep a command that is done.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let codes = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unreachable, Exit::NotFound, Exit::Interrupted];
        assert_eq!(codes.map(Exit::code), [0, 1, 2, 3, 4, 130]);
    }
}
