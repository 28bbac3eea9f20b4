//! Options of `netvsc host`.

use std::path::PathBuf;

use clap::Args;
use netvsc_linux::TapName;

use crate::log::LogArgs;
use crate::units::Span;

/// What is said at length about hosts.
pub const LONG: &str = "\
Run the simulated Hyper-V host as a process of its own: a bus, NICs with VFs, and a switch. A guest in another process connects \
to it with `netvsc run --host unix:PATH`; when it has gone, however it went, the next one may come.

Behind the first NIC is the TAP interface of --peer-tap, or a small stack at 192.0.2.2 that answers pings; behind all others, \
such a stack. The stacks also take and give the data of guests without TAPs.";

/// Examples and exit statuses.
pub const EXAMPLES: &str = "\
Examples:
  netvsc host --listen /run/netvsc.sock
      and in another terminal: netvsc run --host unix:/run/netvsc.sock
  netvsc host --listen /run/netvsc.sock --peer-tap nv1 --churn 2s
      VFs come and go every 2 s; the other end: netvsc run --host unix:/run/netvsc.sock --tap nv0

Who may connect: root, and the user that the host runs as. The socket has mode 0600.

Exit status:
  0  it was asked to stop (Ctrl-C, SIGTERM), or --duration is over
  1  nobody can listen there, or something it needs is missing (a privilege, a free TAP)
  2  the command line makes no sense";

/// Options of `netvsc host`.
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// Where guests connect: the path of a Unix socket
    #[arg(
        long,
        value_name = "PATH",
        long_help = "Where guests connect: the path of a Unix socket, which is made with mode 0600 and goes with the host. One that a killed host left behind is replaced"
    )]
    pub listen: PathBuf,

    /// NICs that the host offers, each with a VF
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2,
        value_parser = clap::value_parser!(u8).range(1..=16),
        long_help = "NICs that the host offers, each with a VF: 1 to 16"
    )]
    pub nics: u8,

    /// Offer the NICs without VFs: all frames go on the synthetic path
    #[arg(long, conflicts_with = "churn")]
    pub without_vfs: bool,

    /// Attach the wire of the first NIC to this TAP interface (needs root or CAP_NET_ADMIN)
    #[arg(
        long,
        value_name = "NAME",
        long_help = "Attach the wire of the first NIC to this TAP interface. It is created if it does not exist and removed at the end; one that exists gets its old state back. Needs root or CAP_NET_ADMIN. Without it, a small stack at 192.0.2.2 is there and answers pings"
    )]
    pub peer_tap: Option<TapName>,

    /// Carry the frames of the first NIC's VF over this interface of the kernel's (needs root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF)
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "without_vfs",
        long_help = "Carry the frames of the first NIC's VF over this interface of the kernel's, such as one end of a veth pair; the guest has the other end (netvsc run --vf-link). It may go and come back. Its MTU is yours to choose: at least that of the guest's NIC. The kernel should have no address there; its own IP is kept off it. Needs root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF: without the last the kernel's own stack gets what is received there, too, as it does before Linux 6.6"
    )]
    pub vf_peer: Option<String>,

    /// How often VFs leave or return; 0 = never
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0",
        long_help = "How often VFs leave or return, such as 300ms or 2s. 0 = never: they arrive and stay. Units: ms, s, m, h"
    )]
    pub churn: Span,

    /// Chooses identities, MACs and delays
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Print events as JSON lines
    #[arg(long)]
    pub json: bool,

    /// Print how many frames went where, this often; 0 = never
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0",
        long_help = "Print how many frames went where, this often, while there is a guest. 0 = never. Units: ms, s, m, h"
    )]
    pub stats_interval: Span,

    /// Stop after this time instead of at Ctrl-C
    #[arg(
        long,
        value_name = "SPAN",
        long_help = "Stop after this time instead of at Ctrl-C, such as 30s or 5m. Units: ms, s, m, h"
    )]
    pub duration: Option<Span>,

    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
}
