//! Options of a run that drives NICs of this machine from user space.

use std::path::PathBuf;

use clap::Args;

/// Options of `netvsc run --host uio`.
#[derive(Clone, Debug, Args)]
pub struct UioArgs {
    /// The NIC to drive: interface, GUID or MAC address; may be given several times
    #[arg(
        long,
        value_name = "NIC",
        help_heading = "User space driver (--host uio)",
        long_help = "The NIC to drive: interface, GUID or MAC address. May be given several times. Without it, all that user space has already (netvsc bind --uio). One that the kernel has is taken from it for the time of the run. Only with --host uio"
    )]
    pub nic: Vec<String>,

    /// Drive the NIC although a default route or this session goes through it
    #[arg(
        long,
        help_heading = "User space driver (--host uio)",
        long_help = "Drive the NIC although a default route or this session goes through it. Only with --host uio"
    )]
    pub force: bool,

    /// Show every write to sysfs and make none
    #[arg(
        long,
        help_heading = "User space driver (--host uio)",
        long_help = "Show every write to sysfs that the run would make, at its beginning and at its end, and make none. Only with --host uio"
    )]
    pub dry_run: bool,

    /// Channels of each NIC
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=64),
        help_heading = "Devices",
        long_help = "Channels of each NIC, 1 to 64, as far as the host grants them. Frames are spread over them by their flows, and a TAP interface (--tap) has as many queues. A transfer over the embedded host has as many flows per NIC as queues, every other one towards the guest"
    )]
    pub queues: u16,

    /// Look for NICs in this directory instead of the running system
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "User space driver (--host uio)",
        long_help = "Look for NICs and their devices in this directory, laid out like a root, instead of the running system. Only with --host uio"
    )]
    pub sysfs_root: Option<PathBuf>,
}

impl UioArgs {
    /// The first option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let options = [
            ("--nic", !self.nic.is_empty()),
            ("--force", self.force),
            ("--dry-run", self.dry_run),
            ("--sysfs-root", self.sysfs_root.is_some()),
        ];
        options.iter().find(|(_, given)| *given).map(|(option, _)| *option)
    }
}
