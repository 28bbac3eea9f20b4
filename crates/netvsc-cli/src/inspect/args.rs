//! Options of the verbs that look at a guest.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};

use super::columns::{Column, ColumnChoice};
use super::lsvmbus::DeviceColumn;

/// Where to look.
#[derive(Clone, Debug, Default, Args)]
pub struct SourceArgs {
    /// Look at the guest in this directory instead of the running system
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        help_heading = "Source",
        long_help = "Look at the guest in this directory instead of the running system. It is laid out like a root: sys, proc, run/udev/data, and the kernel log in dev/kmsg (as records or as dmesg prints it). No link leads out of it"
    )]
    pub sysfs_root: Option<PathBuf>,

    /// Look at the guest in this archive, which `netvsc collect` made
    #[arg(
        long,
        value_name = "ARCHIVE",
        global = true,
        conflicts_with = "sysfs_root",
        help_heading = "Source",
        long_help = "Look at the guest in this archive, which `netvsc collect` made, as if this were that machine; - for standard input. Nothing can be changed there. An archive that is damaged, or holds what none of ours does, is refused whole"
    )]
    pub from: Option<PathBuf>,
}

impl SourceArgs {
    /// The directory that somebody chose, in which files can be changed; none for the running system, and for an archive, which is
    /// unpacked to be read only.
    #[must_use]
    pub fn changeable_root(&self) -> Option<&Path> {
        self.sysfs_root.as_deref().filter(|_| self.from.is_none())
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set; with CLICOLOR_FORCE set, always
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How to say it.
#[derive(Clone, Debug, Default, Args)]
pub struct OutputArgs {
    /// Print JSON
    #[arg(
        short,
        long,
        help_heading = "Output",
        long_help = "Print one JSON object with its \"schema_version\". Keys are never renamed or retyped within a version; new ones may come; what is not known is null"
    )]
    pub json: bool,

    /// Print JSON over several lines
    #[arg(short, long, help_heading = "Output")]
    pub pretty: bool,

    /// When to use colours
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value_t = ColorChoice::Auto,
        help_heading = "Output"
    )]
    pub color: ColorChoice,
}

impl OutputArgs {
    /// Whether JSON is wanted.
    #[must_use]
    pub fn json(&self) -> bool {
        self.json || self.pretty
    }
}

/// Which columns a table of NICs has.
#[derive(Clone, Debug, Default, Args)]
pub struct RowArgs {
    /// Which columns, in which order; +COL adds to the usual ones
    #[arg(
        short = 'o',
        long = "columns",
        value_name = "COL,..",
        allow_hyphen_values = true,
        help_heading = "Output"
    )]
    pub columns: Option<ColumnChoice>,

    /// One line per NIC, without header: NIC, state, VF (also -br)
    #[arg(long, conflicts_with = "columns", help_heading = "Output")]
    pub brief: bool,
}

impl RowArgs {
    /// The columns, if a choice was made.
    #[must_use]
    pub fn chosen(&self) -> Option<Vec<Column>> {
        let brief = || self.brief.then(|| vec![Column::Nic, Column::State, Column::Vf]);
        self.columns.as_ref().map(|ColumnChoice(columns)| columns.clone()).or_else(brief)
    }
}

/// Options of `netvsc list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Which of it.
    #[command(flatten)]
    pub rows: RowArgs,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `netvsc show`.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Interfaces, GUIDs, PCI addresses or MAC addresses; everything if none is given
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// A table instead of pages.
    #[command(flatten)]
    pub rows: RowArgs,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `netvsc explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Interface, GUID, PCI address or MAC address
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What `netvsc resolve` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// The interface of the synthetic NIC
    #[default]
    Nic,
    /// The interface of the VF
    Vf,
    /// The GUID of the synthetic NIC
    Guid,
    /// The PCI address of the VF
    Pci,
    /// The permanent MAC address
    Mac,
}

/// Options of `netvsc resolve`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("key").required(true).args(["mac", "serial", "guid", "pci", "interface"]))]
pub struct ResolveArgs {
    /// The pair with this permanent MAC address
    #[arg(long, value_name = "MAC")]
    pub mac: Option<String>,

    /// The pair with this serial number
    #[arg(long, value_name = "N")]
    pub serial: Option<u32>,

    /// The pair whose NIC or virtual PCI bus has this GUID
    #[arg(long, value_name = "GUID")]
    pub guid: Option<String>,

    /// The pair whose VF has this PCI address
    #[arg(long, value_name = "BDF")]
    pub pci: Option<String>,

    /// The pair to which this interface belongs, as NIC or as VF
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,

    /// What to print of it
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Wanted::Nic)]
    pub print: Wanted,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `netvsc lsvmbus`.
#[derive(Clone, Debug, Args)]
pub struct LsvmbusArgs {
    /// Say more: channels and processors; twice: GUIDs and paths as well
    #[arg(short, action = clap::ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,

    /// A table of these columns, in this order, instead of the classic text
    #[arg(
        short = 'o',
        long = "columns",
        value_name = "COL,..",
        value_enum,
        value_delimiter = ',',
        conflicts_with = "verbose",
        help_heading = "Output"
    )]
    pub columns: Option<Vec<DeviceColumn>>,

    /// One line per device, without header: GUID, driver, class (also -br)
    #[arg(long, conflicts_with_all = ["columns", "verbose"], help_heading = "Output")]
    pub brief: bool,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}
