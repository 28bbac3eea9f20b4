//! The program `netvsc`.

use std::process::ExitCode;

use netvsc_cli::args::{Cli, Command};

fn main() -> ExitCode {
    let Command::Run(run) = Cli::from_command_line().command;
    match netvsc_cli::run::run(&run) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netvsc: {error}");
            error.exit_code()
        }
    }
}
