//! The program `netvsc`.

use std::process::ExitCode;

use netvsc_cli::args::{Cli, Command};
use netvsc_cli::error::Error;
use netvsc_cli::inspect;

fn main() -> ExitCode {
    let mut command = Cli::from_command_line().command;
    // What is unpacked goes with this value.
    let unpacked = command.unpack();
    match unpacked.and_then(|_guest| carry_out(&command)) {
        Ok(code) => code,
        Err(error) => {
            if !error.is_unheard() {
                netvsc_cli::remark(&error);
            }
            match command {
                // 1 and 2 say what was found.
                Command::Check(_) => ExitCode::from(netvsc_cli::check::UNKNOWN),
                _ => error.exit_code(),
            }
        }
    }
}

fn carry_out(command: &Command) -> Result<ExitCode, Error> {
    match command {
        Command::Run(args) => return netvsc_cli::run::run(args),
        Command::Host(args) => return netvsc_cli::host::run(args),
        Command::Sim(args) => return netvsc_cli::sim::run(args),
        Command::Check(args) => return netvsc_cli::check::run(args),
        Command::List(args) => inspect::list(args)?,
        Command::Show(args) => inspect::show(args)?,
        Command::Explain(args) => inspect::explain(args)?,
        Command::Resolve(args) => inspect::resolve(args)?,
        Command::Lsvmbus(args) => inspect::lsvmbus(args)?,
        Command::Install(args) => netvsc_cli::install::install(args)?,
        Command::Uninstall(args) => netvsc_cli::install::uninstall(args)?,
        Command::Completions(args) => netvsc_cli::manual::completions(args)?,
        Command::Metrics(args) => netvsc_cli::metrics::metrics(args)?,
        Command::Watch(args) => netvsc_cli::watch::watch(args)?,
        Command::Bind(args) => netvsc_cli::bind::run(args)?,
        Command::Collect(args) => netvsc_cli::collect::collect(args)?,
        Command::Udev(args) => netvsc_cli::udev::udev(args)?,
    }
    Ok(ExitCode::SUCCESS)
}
