//! What options of one verb mean for each other, beyond what the parser knows.

use clap::error::ErrorKind;

use super::{Command, HostChoice, RunArgs, VfLayout};
use crate::remote::VfInterface;
use crate::units::ByteSize;

/// What is wrong with a command line, in words.
type Complaint = (ErrorKind, String);

fn conflict(message: String) -> Complaint {
    (ErrorKind::ArgumentConflict, message)
}

impl Command {
    /// The verb that would change a guest that is only an archive, and what is wrong with that: what is unpacked goes afterwards, and what
    /// was printed to take it back would change this machine.
    pub(super) fn changes_an_archive(&self) -> Option<(&'static str, Complaint)> {
        let (verb, source, option, instead) = match self {
            Self::Check(args) if args.fix && !args.dry_run => {
                ("check", &args.source, "--fix", "add --dry-run to see what would be done there")
            }
            Self::Bind(args) => ("bind", &args.source, "bind", "run it on that machine"),
            Self::Udev(args) if args.retrigger_peers => {
                ("udev", &args.source, "--retrigger-peers", "run it on that machine")
            }
            Self::Watch(args) if args.notify_udev => {
                ("watch", &args.source, "--notify-udev", "run it on that machine")
            }
            _ => return None,
        };
        source.from.as_ref()?;
        let why = "an archive is a copy of a guest, and nothing can be changed in it";
        Some((
            verb,
            conflict(format!("{option} is of no use with --from ARCHIVE: {why}; {instead}")),
        ))
    }
}

impl RunArgs {
    /// The interface that is the first NIC's VF.
    pub(crate) fn vf_interface(&self) -> Option<VfInterface> {
        let name = self.vf_link.clone()?;
        Some(VfInterface { name, driver: self.vf_driver })
    }

    /// What options of one kind mean for each other.
    pub(super) fn check(&self) -> Result<(), Complaint> {
        if let (Some(tap), Some(peer)) = (&self.tap, &self.peer_tap)
            && tap == peer
        {
            let message =
                format!("--tap and --peer-tap are both `{tap}`; give two different names");
            return Err((ErrorKind::ValueValidation, message));
        }
        // By any name: it would be emptied before it is read.
        if let (Some(transfer), Some(pcap)) = (&self.transfer, &self.pcap)
            && let (Ok(from), Ok(to)) = (transfer.canonicalize(), pcap.canonicalize())
            && from == to
        {
            let message = "--transfer and --pcap are the same file; give two different ones";
            return Err((ErrorKind::ValueValidation, message.to_owned()));
        }
        self.check_host()?;
        if self.duration.is_some_and(|span| span.0.is_zero()) {
            let message =
                "--duration is 0; give a time such as 30s, or leave it out to run until Ctrl-C";
            return Err((ErrorKind::ValueValidation, message.to_owned()));
        }
        Ok(())
    }

    /// What goes with which host.
    fn check_host(&self) -> Result<(), Complaint> {
        // What the host does is said to the host.
        let of_embedded = [
            ("--peer-tap", self.peer_tap.is_some()),
            ("--churn", !self.churn.0.is_zero()),
            ("--vf", self.vf != VfLayout::Own),
            ("--disks", self.disks != 0),
            ("--timeline", self.timeline.is_some()),
        ];
        let of_embedded = of_embedded.iter().find(|(_, given)| *given).map(|(option, _)| option);
        let of_transfer =
            [("--transfer", self.transfer.is_some()), ("--size", self.size != ByteSize(64 << 20))];
        let of_transfer = of_transfer.iter().find(|(_, given)| *given).map(|(option, _)| option);
        match (&self.host, of_embedded) {
            (HostChoice::Unix(_), Some(option)) => {
                let why = "that host has its own options";
                return Err(conflict(format!(
                    "{option} is of no use with --host unix:PATH: {why}"
                )));
            }
            (HostChoice::Uio, Some(option)) => {
                let why = "a real host does as it likes";
                return Err(conflict(format!("{option} is of no use with --host uio: {why}")));
            }
            _ => {}
        }
        if self.host == HostChoice::Uio {
            return match of_transfer {
                Some(option) => Err(conflict(format!(
                    "{option} is of no use with --host uio: the traffic is the kernel's"
                ))),
                None => Ok(()),
            };
        }
        if let Some(option) = self.uio.given() {
            return Err(conflict(format!("{option} goes with --host uio")));
        }
        let of_process =
            [("--mtu", self.mtu != 1500), ("--stats-interval", !self.stats_interval.0.is_zero())];
        let of_process = of_process.iter().find(|(_, given)| *given).map(|(option, _)| *option);
        let of_tap = of_process.or_else(|| self.duration.map(|_| "--duration"));
        if let Some(option) = of_tap.filter(|_| self.tap.is_none()) {
            let message = format!("{option} goes with --tap NAME or --host uio");
            return Err((ErrorKind::MissingRequiredArgument, message));
        }
        if self.vf_link.is_some() && !matches!(self.host, HostChoice::Unix(_)) {
            return Err(conflict("--vf-link goes with --host unix:PATH or uio".into()));
        }
        if self.vf_link.is_some() && self.tap.is_none() {
            let message = "--vf-link goes with --tap NAME or --host uio".to_owned();
            return Err((ErrorKind::MissingRequiredArgument, message));
        }
        match of_process {
            Some(option) if !matches!(self.host, HostChoice::Unix(_)) => {
                Err(conflict(format!("{option} goes with --host unix:PATH or uio")))
            }
            _ => Ok(()),
        }
    }
}
