//! The program `netvsc`.

use std::process::ExitCode;

use netvsc_cli::args::{Cli, Command};

fn main() -> ExitCode {
    let done = match Cli::from_command_line().command {
        Command::Run(run) => netvsc_cli::run::run(&run),
        Command::Sim(sim) => netvsc_cli::sim::run(&sim),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netvsc: {error}");
            error.exit_code()
        }
    }
}
