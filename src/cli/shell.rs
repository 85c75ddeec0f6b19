//! `atelier completions` and `atelier man`: what shells and readers want to know of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{
    Cli,
    error::{CliError, Result},
    output::{line, print},
};

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Completions {
    /// Shell to complete in
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(completions: Completions) -> Result {
    let mut text = Vec::new();
    clap_complete::generate(completions.shell, &mut Cli::command(), "atelier", &mut text);
    print(&String::from_utf8_lossy(&text))
}

#[derive(Args, Debug)]
pub(super) struct Man {
    /// Folder to write all pages to; without it the main page is printed
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(super) fn man(man: &Man) -> Result {
    let Some(folder) = &man.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(|error| CliError::failed(format!("the page: {error}")))?;
        return print(&String::from_utf8_lossy(&page));
    };
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?;
    line(&format!("wrote the pages to {}", folder.display()))
}
