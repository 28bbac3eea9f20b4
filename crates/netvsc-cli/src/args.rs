//! The command line.

mod consistent;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use netvsc_linux::TapName;

use crate::archive::{self, Unpacked};
use crate::bind::{self, BindArgs};
use crate::check::args::{self as check, CheckArgs};
use crate::collect::{self, CollectArgs};
use crate::error::Error;
use crate::host::args::{self as host, HostArgs};
use crate::inspect::args::SourceArgs;
use crate::inspect::args::{ExplainArgs, ListArgs, LsvmbusArgs, ResolveArgs, ShowArgs};
use crate::install::{self, InstallArgs, UninstallArgs};
use crate::log::LogArgs;
use crate::manual::{self, CompletionsArgs};
use crate::metrics::{self, args::MetricsArgs};
use crate::remote::VfDriver;
use crate::run::uio::args::UioArgs;
use crate::sim::args::{self as sim, SimArgs};
use crate::udev::{self, UdevArgs};
use crate::units::{ByteSize, Span};
use crate::watch::{self, WatchArgs};

const ABOUT: &str = "Hyper-V accelerated networking from user space";

const LONG_ABOUT: &str = "\
Hyper-V accelerated networking from user space.

A Hyper-V guest sees every accelerated network card twice: as a synthetic NIC on VMBus and as a virtual function \
(VF) on a PCI bus. netvsc drives the synthetic NIC, finds the VF that belongs to it by the serial number that the \
host gives both, and moves the traffic between the two without losing a frame.";

const RUN_LONG: &str = "\
Bring up every NIC of the host, pair it with its VF, and keep its traffic on the best path.

Without options this transfers 64 MiB over TCP per NIC on the embedded host: two NICs with one VF each, and an \
emulated NIC that carries the MAC address of one of them and must never be paired. Meanwhile the host ejects the \
VFs, gives them back, tears one away without a word and returns one under a new serial number. The same seed gives \
the same run, event for event.

With --tap the traffic is the kernel's own: the first NIC is attached to a TAP interface, and with --peer-tap the \
far side of the virtual switch to a second one. This runs until Ctrl-C (or --duration) and needs root or \
CAP_NET_ADMIN.";

const RUN_EXAMPLES: &str = "\
Examples:
  netvsc run
      the default transfer, with a live view on a terminal
  netvsc run --json --seed 7
      one JSON object per event, and a summary as the last line; the same on every run
  netvsc run --transfer disk.img
      send this file over every NIC and compare its digest
  netvsc run --size 1GiB
      send 1 GiB of generated data per NIC
  netvsc run --pcap run.pcapng
      every frame in a file for Wireshark, each NIC, path and direction an interface
  netvsc run --vf shared --disks 1
      one function with a port for every NIC, and a disk that has its serial number
  sudo netvsc run --tap nv0 --peer-tap nv1 --churn 2s
      two TAP interfaces, joined by a NIC, its VF and the virtual switch; VFs come and go every 2 s

  To let the kernel talk through them, give each end a network namespace while it runs:
    ip netns add a
    ip link set nv0 netns a
    ip -n a addr add 192.0.2.1/24 dev nv0
    ip -n a link set nv0 up
  likewise nv1 in a namespace b with 192.0.2.2/24, and then
    ip netns exec a ping 192.0.2.2

Exit status:
  0  every digest matched and no frame was lost by an orderly switch
  1  the run failed, something it needs is missing (a file, a privilege, a free TAP), or the host took back every NIC of it
  2  the command line makes no sense";

const LOOK_STATUS: &str = "\
Exit status:
  0  it was said; also where this machine is no Hyper-V guest, or some files could not be read
  1  nothing here is called that, or the root cannot be used
  2  the command line makes no sense

No privilege is needed. Where the kernel log is not readable (it needs CAP_SYSLOG), associations and paths are unknown.";

/// What the user asked for.
#[derive(Clone, Debug, Parser)]
#[command(name = "netvsc", version, about = ABOUT, long_about = LONG_ABOUT, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Bring up the NICs, pair them with their VFs and carry traffic
    #[command(long_about = RUN_LONG, after_long_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Be the simulated host, for a guest in another process
    #[command(long_about = host::LONG, after_long_help = host::EXAMPLES)]
    Host(HostArgs),
    /// Run whole systems from seeds and check what must always hold
    #[command(long_about = sim::LONG, after_long_help = sim::EXAMPLES)]
    Sim(SimArgs),

    /// List the NICs of this Linux guest with their VFs
    #[command(after_long_help = LOOK_STATUS)]
    List(ListArgs),

    /// Show everything about a pair: facts with their sources, both interfaces side by side, the kernel's last words
    #[command(after_long_help = LOOK_STATUS)]
    Show(ShowArgs),

    /// Explain in sentences why something is or is not a pair
    #[command(after_long_help = LOOK_STATUS)]
    Explain(ExplainArgs),

    /// Find what is wrong with NICs and VFs, say why, and mend it
    #[command(long_about = check::LONG, after_long_help = check::STATUS)]
    Check(CheckArgs),

    /// Print one word about a pair, for scripts
    #[command(after_long_help = LOOK_STATUS)]
    Resolve(ResolveArgs),

    /// List all devices on VMBus
    #[command(after_long_help = LOOK_STATUS)]
    Lsvmbus(LsvmbusArgs),

    /// Print what happens to the pairs of this Linux guest, as it happens
    #[command(long_about = watch::LONG, after_long_help = watch::STATUS)]
    Watch(WatchArgs),

    /// Tell what is known of NICs and VFs as Prometheus metrics
    #[command(long_about = metrics::args::LONG, after_long_help = metrics::args::STATUS)]
    Metrics(MetricsArgs),

    /// Put everything that the other verbs read into one archive
    #[command(long_about = collect::LONG, after_long_help = collect::STATUS)]
    Collect(CollectArgs),

    /// Say what a network device is, as properties for udev
    #[command(long_about = udev::LONG, after_long_help = udev::STATUS)]
    Udev(UdevArgs),

    /// Put udev rules, units, completions and man pages in place
    #[command(long_about = install::LONG, after_long_help = install::STATUS)]
    Install(InstallArgs),

    /// Take away what `install` put in place
    #[command(long_about = install::UNLONG, after_long_help = install::STATUS)]
    Uninstall(UninstallArgs),

    /// Print the completions of a shell
    #[command(after_long_help = manual::STATUS)]
    Completions(CompletionsArgs),

    /// Give a NIC to user space, or back to the kernel
    #[command(long_about = bind::LONG, after_long_help = bind::STATUS)]
    Bind(BindArgs),
}

impl Command {
    /// Where the verb looks, if it looks at a guest.
    fn source(&mut self) -> Option<&mut SourceArgs> {
        match self {
            Self::List(args) => Some(&mut args.source),
            Self::Show(args) => Some(&mut args.source),
            Self::Explain(args) => Some(&mut args.source),
            Self::Resolve(args) => Some(&mut args.source),
            Self::Lsvmbus(args) => Some(&mut args.source),
            Self::Watch(args) => Some(&mut args.source),
            Self::Metrics(args) => Some(&mut args.source),
            Self::Collect(args) => Some(&mut args.source),
            Self::Udev(args) => Some(&mut args.source),
            Self::Bind(args) => Some(&mut args.source),
            Self::Check(args) => Some(&mut args.source),
            Self::Install(args) => Some(&mut args.source),
            Self::Run(_)
            | Self::Host(_)
            | Self::Sim(_)
            | Self::Uninstall(_)
            | Self::Completions(_) => None,
        }
    }

    /// Unpacks the archive that the verb is to look at, if there is one, and has it look there. The guest is there as
    /// long as what this gives is kept.
    ///
    /// # Errors
    /// [`Error::Archive`] if it cannot be read or is refused.
    pub fn unpack(&mut self) -> Result<Option<Unpacked>, Error> {
        let Some(source) = self.source() else { return Ok(None) };
        let Some(path) = &source.from else { return Ok(None) };
        let unpacked = archive::unpack(path)?;
        source.sysfs_root = Some(unpacked.root().to_owned());
        Ok(Some(unpacked))
    }
}

/// Which host to run against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChoice {
    /// The best that this machine has; today always the embedded one, and the program says so.
    Auto,
    /// The host inside this program: works on any machine.
    Embedded,
    /// A host in another process, that listens at this path: `netvsc host`.
    Unix(PathBuf),
    /// The host of this machine: its NICs are driven from user space.
    Uio,
}

impl FromStr for HostChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "embedded" => Ok(Self::Embedded),
            "uio" => Ok(Self::Uio),
            _ => match text.strip_prefix("unix:") {
                Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
                _ => Err("expected auto, embedded, unix:PATH, or uio".into()),
            },
        }
    }
}

/// How the NICs get their VFs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum VfLayout {
    /// Each NIC has a function of its own, with the serial number that its association names
    #[default]
    Own,
    /// One function has a port for every NIC, and all associations name its serial number
    Shared,
    /// The same, but the associations name another number, as MANA's do: only the MAC addresses match
    Mana,
}

/// Options of `netvsc run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Send this file over every NIC instead of generated data
    #[arg(long, value_name = "FILE", help_heading = "Transfer")]
    pub transfer: Option<PathBuf>,

    /// How much generated data to send per NIC
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "64MiB",
        conflicts_with = "transfer",
        help_heading = "Transfer",
        long_help = "How much generated data to send per NIC. Units: B, KiB, MiB, GiB, kB, MB, GB; without a unit, bytes"
    )]
    pub size: ByteSize,

    /// Repeat a run exactly: the same number gives the same events
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        long_help = "Repeat a run exactly: the same number gives the same generated data, the same moments at which VFs come and go, and so the same events"
    )]
    pub seed: u64,

    /// Which host to run against: auto, embedded, unix:PATH, or uio
    #[arg(
        long,
        value_name = "HOST",
        default_value = "auto",
        long_help = "Which host to run against. auto: the best that this machine has, today always the embedded one. embedded: the host inside this program, which works on any machine. unix:PATH: a host in another process, which listens there (netvsc host --listen PATH). uio: the host of this machine, whose NICs are driven from user space"
    )]
    pub host: HostChoice,

    /// Print events as JSON lines; the last line is the summary
    #[arg(
        long,
        long_help = "Print one JSON object per line for every event. The last line has \"event\":\"summary\" with the totals"
    )]
    pub json: bool,

    /// Write every frame to this file, as pcapng
    #[arg(
        long,
        value_name = "FILE",
        long_help = "Write every frame of the NICs to this file in the pcapng format, which Wireshark and tshark read. Each NIC, path and direction is an interface: nic0-vf-out; with several queues, each queue too: nic0-synthetic-q2-in. A file that is there is replaced"
    )]
    pub pcap: Option<PathBuf>,

    /// Draw what happened into this file, as SVG for a browser
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "tap",
        long_help = "Draw what happened into this file, as SVG for a browser: for each NIC the path over time, what the host and the VF did, frames per path, and how long switches kept frames waiting. A file that is there is replaced"
    )]
    pub timeline: Option<PathBuf>,

    /// How the NICs get their VFs
    #[arg(
        long,
        value_enum,
        value_name = "LAYOUT",
        default_value_t = VfLayout::Own,
        conflicts_with = "tap",
        help_heading = "Devices"
    )]
    pub vf: VfLayout,

    /// NVMe disks beside the VFs, each with the serial number of one of them
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u8).range(..=16),
        conflicts_with = "tap",
        help_heading = "Devices",
        long_help = "How many NVMe disks there are on virtual PCI buses of their own, 0 to 16. The host gives them the serial numbers that the VFs have, as real hosts do; they must never be paired"
    )]
    pub disks: u8,

    /// Attach the first NIC to this TAP interface (needs root or CAP_NET_ADMIN)
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["transfer", "size"],
        help_heading = "Kernel traffic",
        long_help = "Attach the first NIC to this TAP interface: what the kernel sends there leaves through the NIC. The interface is created if it does not exist and removed at the end; one that exists gets its old state back. Needs root or CAP_NET_ADMIN"
    )]
    pub tap: Option<TapName>,

    /// Attach the far side of the virtual switch to this TAP interface
    #[arg(
        long,
        value_name = "NAME",
        requires = "tap",
        help_heading = "Kernel traffic",
        long_help = "Attach the far side of the virtual switch to this TAP interface. Without it, a small stack at 192.0.2.2 is there and answers pings"
    )]
    pub peer_tap: Option<TapName>,

    /// The interface of the kernel's that is a NIC's VF (needs root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF)
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Kernel traffic",
        long_help = "The interface of the kernel's that is a NIC's VF. With --host unix:PATH it is the first NIC's, where the host carries its frames over one (netvsc host --vf-peer): the other end of a veth pair, with --tap. With --host uio it has to be a port of a function on a virtual PCI bus, and goes to the NIC that has its serial and MAC, by the same rules as everywhere. It gets the MAC that the host gave the VF, and is set up; the kernel's own IP is kept off it. It may go down, go away and come back, under this name. Needs root, or CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF: without the last there is no AF_XDP, and the kernel's own stack gets what AF_PACKET receives, too, as it does before Linux 6.6"
    )]
    pub vf_link: Option<String>,

    /// How the frames of that interface are reached
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value_t = VfDriver::Auto,
        requires = "vf_link",
        help_heading = "Kernel traffic"
    )]
    pub vf_driver: VfDriver,

    /// How often VFs leave or return; 0 = never
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0",
        requires = "tap",
        help_heading = "Kernel traffic",
        long_help = "How often VFs leave or return while the TAPs carry traffic, such as 300ms or 2s. 0 = never: they arrive and stay. Units: ms, s, m, h"
    )]
    pub churn: Span,

    /// Largest packet of the NICs in bytes, without Ethernet header
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 1500,
        value_parser = clap::value_parser!(u32).range(576..=9000),
        help_heading = "Kernel traffic",
        long_help = "Largest packet of the NICs in bytes, without Ethernet header: 576 to 9000. The TAP interface gets the same. Simulated VFs take no more than 2030; with more, all frames go on the synthetic path. Only with --host unix:PATH or uio"
    )]
    pub mtu: u32,

    /// Print how many frames went where, this often; 0 = never
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0",
        help_heading = "Kernel traffic",
        long_help = "Print how many frames went where, this often, while a host is there. 0 = never. Units: ms, s, m, h. Only with --host unix:PATH or uio"
    )]
    pub stats_interval: Span,

    /// Stop after this time instead of at Ctrl-C
    #[arg(
        long,
        value_name = "SPAN",
        help_heading = "Kernel traffic",
        long_help = "Stop after this time instead of at Ctrl-C, such as 30s or 5m. Units: ms, s, m, h"
    )]
    pub duration: Option<Span>,

    /// NICs of this machine.
    #[command(flatten)]
    pub uio: UioArgs,

    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
}

impl Cli {
    /// Reads the command line of this process. Ends the process for `--help` and `--version` (status 0) and for a
    /// command line that makes no sense (status 2).
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::read(std::env::args_os()).unwrap_or_else(|error| {
            // Nagios would read the usual 2 as critical.
            let check = std::env::args_os().nth(1).is_some_and(|verb| verb == "check");
            if check && error.use_stderr() {
                // If standard error is closed there is nobody to tell.
                let _ = error.print();
                std::process::exit(crate::check::UNKNOWN.into());
            }
            error.exit()
        })
    }

    /// Reads and checks `arguments`, the first of which is the program's name.
    ///
    /// # Errors
    /// What to tell the user, also where that is the help.
    pub fn read<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let cli = Self::try_parse_from(spelled_out(arguments))?;
        if let Command::Run(run) = &cli.command {
            run.check().map_err(|(kind, message)| complaint("run", kind, message))?;
        }
        if let Some((verb, (kind, message))) = cli.command.changes_an_archive() {
            return Err(complaint(verb, kind, message));
        }
        Ok(cli)
    }
}

/// `-br`, as `ip` spells it, is one option and not two.
fn spelled_out<I, T>(arguments: I) -> Vec<OsString>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let mut literal = false;
    arguments
        .into_iter()
        .map(|argument| {
            let argument = argument.into();
            literal |= argument == "--";
            if !literal && argument == "-br" { "--brief".into() } else { argument }
        })
        .collect()
}

/// An error about the options of `subcommand`, with that command's usage.
fn complaint(subcommand: &str, kind: ErrorKind, message: String) -> clap::Error {
    let mut command = Cli::command();
    command.build();
    match command.find_subcommand_mut(subcommand) {
        Some(command) => command.error(kind, message),
        None => command.error(kind, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(line: &str) -> Result<RunArgs, clap::Error> {
        let words = ["netvsc", "run"].into_iter().chain(line.split_whitespace());
        match Cli::read(words)?.command {
            Command::Run(run) => Ok(run),
            other => panic!("expected a run, read {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        let error = run(line).expect_err(line);
        assert_eq!(error.exit_code(), i32::from(crate::error::USAGE), "{line}");
        error.to_string()
    }

    #[test]
    fn the_command_line_is_consistent_in_itself() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_options_it_is_the_default_transfer() {
        let run = run("").unwrap();
        assert_eq!(run.size, ByteSize(64 << 20));
        assert_eq!(run.seed, 1);
        assert_eq!(run.host, HostChoice::Auto);
        assert!(!run.json && run.transfer.is_none() && run.tap.is_none());
        assert_eq!(run.churn, Span(Duration::ZERO));
        assert_eq!(run.duration, None);
    }

    #[test]
    fn every_option_reaches_its_field() {
        let transfer = run("--transfer a.bin --seed 7 --json --host embedded").unwrap();
        assert_eq!(transfer.transfer, Some("a.bin".into()));
        assert_eq!((transfer.seed, transfer.json, transfer.host), (7, true, HostChoice::Embedded));
        assert_eq!(run("--size 1GiB").unwrap().size, ByteSize(1 << 30));
        assert_eq!(run("--pcap a.pcapng").unwrap().pcap, Some("a.pcapng".into()));
        let devices = run("--vf shared --disks 2").unwrap();
        assert_eq!((devices.vf, devices.disks), (VfLayout::Shared, 2));
        let tap = run("--tap nv0 --peer-tap nv1 --churn 300ms --duration 5s").unwrap();
        assert_eq!(tap.tap, Some("nv0".parse().unwrap()));
        assert_eq!(tap.peer_tap, Some("nv1".parse().unwrap()));
        assert_eq!(tap.churn, Span(Duration::from_millis(300)));
        assert_eq!(tap.duration, Some(Span(Duration::from_secs(5))));
    }

    #[test]
    fn nics_of_this_machine_need_no_tap_of_a_name() {
        let uio = run("--host uio --nic eth1 --nic eth2 --queues 4 --force --dry-run --mtu 3000")
            .expect("it makes sense");
        assert_eq!((uio.host, uio.mtu, uio.uio.queues), (HostChoice::Uio, 3000, 4));
        assert_eq!(uio.uio.nic, ["eth1", "eth2"]);
        assert!(uio.uio.force && uio.uio.dry_run);
        assert!(run("--host uio --duration 5s --stats-interval 1s").is_ok());
    }

    #[test]
    fn options_that_contradict_each_other_are_usage_errors() {
        for (line, word) in [
            ("--tap nv0 --transfer a.bin", "--transfer"),
            ("--tap nv0 --size 1MiB", "--size"),
            ("--transfer a.bin --size 1MiB", "--size"),
            ("--peer-tap nv1", "--tap"),
            ("--churn 300ms", "--tap"),
            ("--duration 5s", "--tap"),
            ("--tap nv0 --vf shared", "--vf"),
            ("--tap nv0 --disks 1", "--disks"),
            ("--tap nv0 --peer-tap nv0", "two different names"),
            ("--tap nv0 --duration 0", "--duration"),
            ("--host unix:a --tap nv0 --peer-tap nv1", "--peer-tap"),
            ("--host unix:a --tap nv0 --churn 1s", "--churn"),
            ("--host unix:a --vf mana", "--vf"),
            ("--host unix:a --disks 1", "--disks"),
            ("--host unix:a --timeline a.svg", "--timeline"),
            ("--tap nv0 --stats-interval 1s", "--stats-interval"),
            ("--tap nv0 --mtu 9000", "--mtu"),
            ("--mtu 9000", "--tap"),
            ("--stats-interval 1s", "--tap"),
            ("--host uio --transfer a.bin", "--transfer"),
            ("--host uio --size 1MiB", "--size"),
            ("--host uio --tap nv0 --peer-tap nv1", "--peer-tap"),
            ("--host uio --tap nv0 --churn 1s", "--churn"),
            ("--host uio --disks 1", "--disks"),
            ("--host unix:a --nic eth1", "--host uio"),
            ("--dry-run", "--host uio"),
        ] {
            let text = refused(line);
            assert!(text.contains(word) && text.contains("netvsc run"), "{line}: {text}");
        }
    }

    #[test]
    fn values_that_mean_nothing_are_usage_errors_with_a_reason() {
        for (line, word) in [
            ("--nonsense", "--nonsense"),
            ("extra", "extra"),
            ("--seed x", "invalid digit"),
            ("--seed -1", "-1"),
            ("--size 0", "zero"),
            ("--size 3parsecs", "MiB"),
            ("--host hyperv", "embedded"),
            ("--host unix:", "unix:PATH"),
            ("--host uio --queues 65", "64"),
            ("--vf none", "mana"),
            ("--disks 17", "16"),
            ("--tap sixteen-bytes-xx", "at most 15 bytes"),
            ("--tap a/b", "'/'"),
            ("--tap ..", "cannot be called"),
            ("--tap nv0 --churn 5", "unit"),
            ("--tap nv0 --duration soon", "300ms"),
            ("--transfer", "--transfer"),
        ] {
            let text = refused(line);
            assert!(text.contains(word), "{line}: {text}");
        }
    }

    #[test]
    fn the_help_names_every_option_and_gives_examples() {
        let help = run("--help").expect_err("help is not a run").to_string();
        for word in [
            "--transfer",
            "--size",
            "--seed",
            "--host",
            "--json",
            "--vf",
            "--disks",
            "--tap",
            "--peer-tap",
            "--churn",
            "--duration",
            "Examples:",
            "Exit status:",
            "CAP_NET_ADMIN",
        ] {
            assert!(help.contains(word), "{word} is missing in:\n{help}");
        }
    }
}
