//! `netvsc collect`: everything that the other verbs read, in one archive.

use std::fs::OpenOptions;
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};

use clap::Args;
use netvsc_linux::inventory::collect as read;
use netvsc_linux::relation::Relations;
use serde::Serialize;

use crate::archive::pack;
use crate::error::Error;
use crate::inspect::args::{OutputArgs, SourceArgs};
use crate::inspect::document::SCHEMA_VERSION;
use crate::inspect::{INTERVAL, complain, print_json, watch_counters};

/// What is said at length about the verb.
pub const LONG: &str = "\
Put everything that the other verbs read into one archive, so that they say the same with --from on another machine.

It holds what sysfs, proc, the udev database and netlink say about VMBus, PCI and the network, the configuration of network \
managers, and of the kernel log the lines about NICs and VFs. Among that are interface names, MAC and IP addresses and \
routes. Passwords and keys in configuration files are replaced by <removed>. The same guest in the same state gives the \
same bytes.";

/// Exit statuses of the verb.
pub const STATUS: &str = "\
Exit status:
  0  it was written; what could not be read is said on standard error, and in the archive
  1  it cannot be written, or the root cannot be used
  2  the command line makes no sense

No privilege is needed. With CAP_SYSLOG the kernel log is in it; other network namespaces need CAP_SYS_ADMIN.";

/// Options of `netvsc collect`.
#[derive(Clone, Debug, Args)]
pub struct CollectArgs {
    /// File to write, which must not be there yet; - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "netvsc-collected.tar")]
    pub output: PathBuf,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say what was done.
    #[command(flatten)]
    pub say: OutputArgs,
}

/// What was done, as JSON.
#[derive(Debug, Serialize)]
struct Collected<'a> {
    schema_version: u32,
    /// The file that was written.
    path: &'a Path,
    /// How many files, folders and links are in it.
    entries: usize,
    unreadable: Vec<Missing<'a>>,
}

/// What could not be read, and is not in it.
#[derive(Debug, Serialize)]
struct Missing<'a> {
    path: &'a str,
    why: &'a str,
}

/// `netvsc collect`.
///
/// # Errors
/// If the root cannot be used or the archive not be written.
pub fn collect(args: &CollectArgs) -> Result<(), Error> {
    let failed = |source| Error::Collect { path: args.output.clone(), source };
    let to_standard_output = args.output == Path::new("-");
    if to_standard_output && args.say.json() {
        return Err(Error::TwoOutputs);
    }
    let (snapshot, collection) = read(args.source.sysfs_root.as_deref(), |snapshot| {
        if Relations::of(snapshot).nics.iter().any(|nic| nic.joined) {
            watch_counters(snapshot, INTERVAL);
        }
    })?;
    if !args.say.json() {
        complain(&snapshot);
    }
    if to_standard_output {
        return match pack(&collection, std::io::stdout().lock()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(error)),
            _ => Ok(()),
        };
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&args.output);
    let file = file.map_err(failed)?;
    pack(&collection, BufWriter::new(file)).map_err(failed)?;
    if !args.say.json() {
        return Ok(());
    }
    let unreadable = snapshot.unreadable.iter();
    let collected = Collected {
        schema_version: SCHEMA_VERSION,
        path: &args.output,
        entries: collection.len(),
        unreadable: unreadable.map(|it| Missing { path: &it.path, why: &it.why }).collect(),
    };
    print_json(&collected, &args.say)
}
