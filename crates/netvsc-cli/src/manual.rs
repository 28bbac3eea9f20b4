//! Man pages and completions, made of the command line itself.
//!
//! They are committed as well (`assets`), and a test fails when those differ from what is made here.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell as Generator;
use clap_mangen::Man;

use crate::args::Cli;
use crate::error::Error;
use crate::inspect::print;

/// A shell whose completions are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash, with the package bash-completion
    Bash,
    /// The Z shell
    Zsh,
    /// The friendly interactive shell
    Fish,
}

impl Shell {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bash, Self::Zsh, Self::Fish];

    /// The name that the shell wants the file to have.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Bash => "netvsc",
            Self::Zsh => "_netvsc",
            Self::Fish => "netvsc.fish",
        }
    }

    /// Where the shell looks for it.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Bash => "/usr/share/bash-completion/completions",
            Self::Zsh => "/usr/share/zsh/site-functions",
            Self::Fish => "/usr/share/fish/vendor_completions.d",
        }
    }

    /// Its completions for `netvsc`.
    #[must_use]
    pub fn completions(self) -> Vec<u8> {
        let generator = match self {
            Self::Bash => Generator::Bash,
            Self::Zsh => Generator::Zsh,
            Self::Fish => Generator::Fish,
        };
        let mut text = Vec::new();
        clap_complete::generate(generator, &mut Cli::command(), "netvsc", &mut text);
        text
    }
}

/// Options of `netvsc completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Exit statuses of the verb.
pub const STATUS: &str = "\
Exit status:
  0  it was printed
  2  the command line makes no sense";

/// `netvsc completions`.
///
/// # Errors
/// If the output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<(), Error> {
    print(&String::from_utf8_lossy(&args.shell.completions()))
}

/// The man pages: name of the file, and its contents. The first is that of the program, then one for each verb.
///
/// # Errors
/// [`Error::Output`] if a page cannot be put together.
pub fn pages() -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    std::iter::once(&command)
        .chain(verbs)
        .map(|command| {
            let page = Man::new(command.clone());
            let mut text = Vec::new();
            page.render(&mut text).map_err(Error::Output)?;
            Ok((page.get_filename(), text))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_says_what_its_exit_statuses_mean() {
        let command = Cli::command();
        for verb in command.get_subcommands() {
            let help = verb.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let name = verb.get_name();
            let (_, statuses) = help.split_once("Exit status:\n").unwrap_or_default();
            // Those of `check` depend on a style.
            let all =
                statuses.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
            assert!(all.contains(" 0 "), "{name} says:\n{help}");
            let usage = all.contains("command line makes no sense");
            assert!(usage, "{name} says nothing of usage errors:\n{help}");
        }
    }
}
