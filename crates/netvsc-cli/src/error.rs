//! What can end the program, and with which exit status.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use netvsc_linux::TapError;

/// Exit status of a run that failed.
pub const FAILED: u8 = 1;
/// Exit status of a command line that makes no sense (the parser's own, by convention of its kind).
pub const USAGE: u8 = 2;

/// Why the program ends without having done what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file to transfer cannot be read.
    #[error("cannot read `{}`: {source}; give --transfer a file that you can read", path.display())]
    Transfer {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file to transfer is something else, such as a directory.
    #[error("cannot transfer `{}`: it is {what}, expected a regular file", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file to transfer has nothing in it.
    #[error("cannot transfer `{}`: it is empty, expected at least one byte", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// The frames cannot be written to a file.
    #[error("cannot write `{}`: {source}; give --pcap a file that you can write", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The picture of the run cannot be written.
    #[error("cannot write `{}`: {source}; give --timeline a file that you can write", path.display())]
    Timeline {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The history cannot be written.
    #[error("cannot write `{}`: {source}; give --log a file that you can write", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The metrics cannot be written.
    #[error("cannot write `{}`: {source}; give --textfile a file in a folder that you can write", path.display())]
    Textfile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The kernel does not answer or tell.
    #[error(transparent)]
    Netlink(#[from] netvsc_linux::netlink::NetlinkError),
    /// The archive is none, or none of ours.
    #[error("cannot use `{}` as an archive of `netvsc collect`: {why}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The archive cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Collect {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The archive and what is said of it are to go to the same place.
    #[error(
        "standard output is to get the archive and the JSON; expected --output FILE beside --json"
    )]
    TwoOutputs,
    /// The directory that holds the guest cannot be used.
    #[error(transparent)]
    Root(#[from] netvsc_linux::inventory::RootError),
    /// Nothing here is called that.
    #[error(
        "no such device: `{name}`; give an interface, a GUID, a PCI address or a MAC address that `netvsc list` shows"
    )]
    NoSuchDevice {
        /// What was asked for.
        name: String,
    },
    /// More than one is called that.
    #[error(
        "`{name}` means more than one NIC: {found}; give a MAC address, a GUID or a PCI address"
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// All that it could mean.
        found: String,
    },
    /// A NIC has a name that another one had before it was taken, or two had it one after the other.
    #[error("`{name}` means more than one NIC: {}; give the GUID of one", found.join(", and "))]
    NamedTwice {
        /// What was asked for.
        name: String,
        /// The GUIDs, each with what makes it the NIC of that name.
        found: Vec<String>,
    },
    /// Nothing here is called that, and what was called so before it was taken cannot be told.
    #[error(
        "no NIC is called `{name}` now, and what those were called that the kernel has not cannot be read: {source}; ask as root, or give a GUID"
    )]
    NamesUnread {
        /// What was asked for.
        name: String,
        /// Why the journal does not say.
        source: netvsc_linux::uio::BindError,
    },
    /// The NIC has not what was asked for.
    #[error("{nic} is {state} and has no such thing; `netvsc explain {nic}` says why")]
    NotKnown {
        /// The NIC.
        nic: String,
        /// Its state.
        state: &'static str,
    },
    /// A NIC was not accelerated in time.
    #[error(
        "{nic} is {state}, and --until settled has waited long enough; `netvsc explain {nic}` says why"
    )]
    Unsettled {
        /// The NIC.
        nic: String,
        /// Its state.
        state: &'static str,
    },
    /// Nobody can tell whether a NIC waits for a VF.
    #[error(
        "cannot tell whether {nic} waits for a VF: {why}, and no counter shows frames that go through its VF; expected a kernel log that \
         goes back to the boot and CAP_SYSLOG to read it, or traffic"
    )]
    Untold {
        /// The NIC.
        nic: String,
        /// What the kernel log lacks.
        why: &'static str,
    },
    /// A file of an installation cannot be read, written or removed.
    #[error(transparent)]
    Install(#[from] crate::install::RootError),
    /// The list of what was put in place is none.
    #[error("cannot use `{path}`: {why}")]
    Manifest {
        /// Where it is, from the root.
        path: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Files are where an installation wants to put its own.
    #[error(
        "nothing was changed: {files} of the files are in the way; move them, or give --force to replace them"
    )]
    InTheWay {
        /// How many.
        files: usize,
    },
    /// The NIC keeps the operator connected.
    #[error(
        "{nic} carries {what}; choose another NIC, or say --force if you can reach this machine otherwise"
    )]
    Needed {
        /// The NIC.
        nic: String,
        /// What goes through it.
        what: String,
    },
    /// There is nothing to drive.
    #[error(
        "there is no synthetic NIC on this machine{}; `netvsc lsvmbus` shows what there is",
        if *vmbus { "'s VMBus" } else { ", which has no VMBus" }
    )]
    NoNic {
        /// Whether there is a VMBus at all.
        vmbus: bool,
    },
    /// The kernel has every NIC, and none was named.
    #[error("no NIC is user space's: say which one to take, `--nic NIC`; there is {found}")]
    ChooseNic {
        /// Names of all NICs.
        found: String,
    },
    /// A device of user space cannot be used.
    #[error(transparent)]
    Uio(#[from] netvsc_linux::uio::UioError),
    /// A device could not change its driver.
    #[error(transparent)]
    Bind(#[from] netvsc_linux::uio::BindError),
    /// Nobody can listen there.
    #[error(transparent)]
    Listen(#[from] netvsc_linux::socket::ListenError),
    /// The host in another process is not there, or is gone.
    #[error("{0}")]
    Remote(String),
    /// A file says no log level.
    #[error("cannot take the log level from `{}`: {why}", path.display())]
    LogLevel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A TAP could not be opened or used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Standard output or the terminal could not be written to.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// The operating system refused something without which the program cannot work.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Results of simulations cannot be read, written or added up.
    #[error(transparent)]
    Results(#[from] crate::sim::results::ResultsError),
    /// The host has taken back every NIC that a run drove.
    #[error(
        "the host took back every NIC of this run ({}); one that is offered again has the kernel's driver: start the run anew then, as netvsc-run@NIC.service does",
        nics.join(", ")
    )]
    TakenBack {
        /// Their GUIDs.
        nics: Vec<String>,
    },
    /// There is no such scenario.
    #[error("no scenario is called `{0}`; `netvsc sim --list` names them")]
    NoScenario(String),
    /// The run came to its end and was not good: a digest differed, frames were lost, or it stood still.
    #[error("the run failed: {0}")]
    Run(String),
}

impl Error {
    /// The exit status that belongs to this error.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        let usage = matches!(self, Self::TwoOutputs | Self::NoScenario(_));
        ExitCode::from(if usage { USAGE } else { FAILED })
    }

    /// Whether there is nobody left to be told: whoever read the output has gone.
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named_with_the_option_that_gave_it() {
        let error =
            Error::Transfer { path: "/no/such".into(), source: io::ErrorKind::NotFound.into() };
        let text = error.to_string();
        assert!(text.contains("`/no/such`") && text.contains("--transfer"), "{text}");
    }

    #[test]
    fn a_tap_error_speaks_for_itself() {
        let name: netvsc_linux::TapName = "tap0".parse().unwrap();
        let error = Error::from(TapError::Busy { name: name.clone() });
        assert_eq!(error.to_string(), TapError::Busy { name }.to_string());
    }
}
