//! `netvsc udev`: what the rules of udev ask while a network device appears.

use std::ffi::OsStr;
use std::time::Duration;

use clap::Args;
use netvsc::MacAddress;
use netvsc_linux::netlink::Connection;
use netvsc_linux::udev::{identify, retrigger};
use serde::Serialize;

use crate::error::Error;
use crate::inspect::args::{OutputArgs, SourceArgs};
use crate::inspect::document::SCHEMA_VERSION;
use crate::inspect::{print, print_json};

/// How long udev is kept waiting at most. Then it is told nothing, and its other rules decide.
const PATIENCE: Duration = Duration::from_millis(50);

/// What is said at length about the verb.
pub const LONG: &str = "\
Say what a network device is, as properties for udev.

The rules that `netvsc install` puts in place run this for every network device on VMBus or on a virtual PCI bus. It \
prints NETVSC_ROLE (synthetic, vf, standalone or pending), NETVSC_GUID, NETVSC_NIC_INDEX, NETVSC_SLOT, NETVSC_SERIAL, \
NETVSC_SERIAL_SOURCE, NETVSC_PEER_GUID and NETVSC_PEER_MAC, as far as they are known. A VF that has a NIC, or may have \
one, also gets AZURE_UNMANAGED_SRIOV=1, ID_NET_MANAGED_BY=unmanaged and NM_UNMANAGED=1, so that network managers keep \
away from it. Other devices get nothing.

What decides is where a device sits and its permanent MAC, which are known when it appears; not its name, its driver \
or the slave flag, which are not.";

/// Exit statuses of the verb.
pub const STATUS: &str = "\
Exit status:
  0  always, also where nothing is known: whatever is wrong here must not stop a network device
  2  the command line makes no sense";

/// Options of `netvsc udev`.
#[derive(Clone, Debug, Args)]
pub struct UdevArgs {
    /// Path of the device below /sys, or its name; without it, DEVPATH of the environment, as udev gives it
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,

    /// Have udev look again at the VFs of this NIC instead
    #[arg(
        long,
        long_help = "Have udev look again at the VFs of this NIC instead, by writing `change` to their uevent files. The rules do so when a NIC comes later than its VF"
    )]
    pub retrigger_peers: bool,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Serialize)]
struct Properties {
    schema_version: u32,
    properties: serde_json::Map<String, serde_json::Value>,
}

/// `netvsc udev`.
///
/// # Errors
/// If the root that was given cannot be used. Everything else that is wrong is silence.
pub fn udev(args: &UdevArgs) -> Result<(), Error> {
    let given = args.device.clone();
    let device = given.or_else(|| std::env::var("DEVPATH").ok()).unwrap_or_default();
    let live = args.source.sysfs_root.is_none();
    if live && std::env::var_os("DEVPATH").is_some_and(|path| path.as_os_str() != OsStr::new("")) {
        stop_in_time();
    }
    let root = args.source.sysfs_root.as_deref();
    let mut ask = |index| if live { permanent(index) } else { None };
    if args.retrigger_peers {
        retrigger(root, &device, &mut ask)?;
        return Ok(());
    }
    let identity = identify(root, &device, &mut ask)?.identity;
    let properties = identity.map(|identity| identity.properties()).unwrap_or_default();
    if args.output.json() {
        let properties = properties.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        let answer =
            Properties { schema_version: SCHEMA_VERSION, properties: properties.collect() };
        return print_json(&answer, &args.output);
    }
    // In one piece: all or nothing.
    let mut text = String::new();
    for (key, value) in properties {
        text.push_str(&format!("{key}={value}\n"));
    }
    print(&text)
}

/// The permanent MAC that the kernel tells of an interface whose MAC was changed.
fn permanent(index: u32) -> Option<MacAddress> {
    Connection::open().ok()?.link(index).ok()??.permanent
}

/// Ends this process, silently, when udev has waited long enough. A read of sysfs may hang as long as the kernel holds
/// its lock of network configuration.
fn stop_in_time() {
    // Without the thread it only takes as long as it takes.
    let _ = std::thread::Builder::new().stack_size(64 << 10).spawn(|| {
        std::thread::sleep(PATIENCE);
        std::process::exit(0);
    });
}
