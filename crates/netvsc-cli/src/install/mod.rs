//! `netvsc install` and `netvsc uninstall`.
//!
//! Everything is planned before anything is touched. What was put in place is written down first, so that an installation
//! that was torn off can be taken away like a whole one.

mod manifest;
mod pieces;
mod root;

use std::path::{Path, PathBuf};

use clap::Args;
use netvsc_linux::inventory::{Depth, take};
use serde::Serialize;

pub use self::manifest::PATH as MANIFEST;
pub use self::pieces::{Contents, PROGRAM, Piece, general};
pub use self::root::RootError;

use self::manifest::{Entry, Manifest, mark_at, mark_of};
use self::root::Root;
use crate::error::Error;
use crate::inspect::args::{OutputArgs, SourceArgs};
use crate::inspect::document::SCHEMA_VERSION;
use crate::inspect::{print, print_json};

/// What is said at length about installing.
pub const LONG: &str = "\
Put in place what lets a Linux guest treat its VFs well: the program, a udev rule, files for systemd-networkd, pieces for \
initramfs-tools and dracut, units that keep a history and metrics and the user of the latter, completions and man pages.

A file that is there and was not put there by this program is never replaced without --force. Nothing is enabled, \
reloaded or rebuilt; what is to be done next is printed. What was put in place is listed in \
/var/lib/netvsc/installed.json, and `netvsc uninstall` takes exactly that away.";

/// What is said at length about taking away.
pub const UNLONG: &str = "\
Take away what `netvsc install` put in place, and the folders that it made, if they are empty. A file that was changed \
since is kept and reported.";

/// Exit statuses of both.
pub const STATUS: &str = "\
Exit status:
  0  it was done, or with --dry-run would have been
  1  something is in the way, or a file cannot be written; if it says so beforehand, nothing was changed
  2  the command line makes no sense";

/// Options of `netvsc install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// Install into the system below this directory, such as an image
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,

    /// Replace files that somebody else put there or changed
    #[arg(long)]
    pub force: bool,

    /// Leave the program itself out, as where a package brings it
    #[arg(long)]
    pub without_program: bool,

    /// Also what fits this guest only: its VFs for NetworkManager by MAC, and .link files that keep its NICs' names
    #[arg(
        long,
        long_help = "Also what fits this guest only: a configuration for NetworkManager that names its VFs by MAC, for versions that do not heed udev, and .link files that keep the names of its NICs by their GUIDs. With --sysfs-root, of the guest in that directory"
    )]
    pub for_guest: bool,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `netvsc uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Take it away from the system below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What happens to one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Act {
    /// It is put there.
    Create,
    /// It takes the place of what an earlier installation put there, or with --force of anything.
    Replace,
    /// It is there already, by an earlier installation.
    Unchanged,
    /// It is there already, by somebody else, and stays theirs.
    Present,
    /// Somebody else's file is in the way.
    Foreign,
    /// Somebody changed it since it was put there.
    Changed,
    /// It is taken away.
    Remove,
    /// It is gone already.
    Gone,
    /// It is kept, because it was changed since.
    Kept,
}

impl Act {
    const fn words(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Unchanged => "unchanged",
            Self::Present => "present, and not ours",
            Self::Foreign => "in the way: not put there by netvsc",
            Self::Changed => "in the way: changed since it was put there",
            Self::Remove => "remove",
            Self::Gone => "gone already",
            Self::Kept => "kept: changed since it was put there",
        }
    }

    const fn in_the_way(self) -> bool {
        matches!(self, Self::Foreign | Self::Changed)
    }
}

#[derive(Serialize)]
struct Step {
    path: String,
    act: Act,
}

#[derive(Serialize)]
struct Plan<'a> {
    schema_version: u32,
    root: &'a Path,
    dry_run: bool,
    done: bool,
    steps: &'a [Step],
    next: &'a [&'a str],
}

/// What is left to do once it is installed or taken away.
const NEXT: [&str; 3] = [
    "udevadm control --reload && udevadm trigger --subsystem-match=net --action=change",
    "systemd-sysusers && systemctl daemon-reload",
    "dracut --force, or update-initramfs -u, whichever this system has",
];

/// `netvsc install`.
///
/// # Errors
/// If something is in the way, the guest or the program cannot be read, or a file cannot be written.
pub fn install(args: &InstallArgs) -> Result<(), Error> {
    let root = Root::open(&args.root)?;
    let before = Manifest::read(&root)?;
    let pieces = pieces(args, &root, &before)?;
    let mut steps = Vec::new();
    for piece in &pieces {
        let act = plan(&root, &before, piece, args.force)?;
        steps.push(Step { path: piece.path.clone(), act });
    }
    // What an earlier version put there and this one does not.
    let stale = |entry: &&Entry| pieces.iter().all(|piece| piece.path != entry.path);
    let mut kept = Vec::new();
    for entry in before.files.iter().filter(stale) {
        let act = departure(&root, entry)?;
        if act == Act::Kept {
            kept.push(entry.clone());
        }
        steps.push(Step { path: entry.path.clone(), act });
    }
    let blocked = steps.iter().filter(|step| step.act.in_the_way()).count();
    let done = !args.dry_run && blocked == 0;
    if done {
        carry_out(&root, &before, &pieces, &steps, kept)?;
    }
    say(&args.root, args.dry_run, done, &steps, &args.output)?;
    if blocked > 0 { Err(Error::InTheWay { files: blocked }) } else { Ok(()) }
}

fn pieces(args: &InstallArgs, root: &Root, before: &Manifest) -> Result<Vec<Piece>, Error> {
    let mut pieces = general()?;
    let running = Path::new("/proc/self/exe");
    // A program that runs from where it belongs is somebody else's to look after, unless it came by us.
    let own = before.entry(PROGRAM).is_some() || !root.is_same(PROGRAM, running);
    if !args.without_program && own {
        pieces.push(pieces::program(running)?);
    }
    if args.for_guest {
        let snapshot = take(args.source.sysfs_root.as_deref(), Depth::Pairs)?;
        pieces.extend(pieces::of_guest(&snapshot));
    }
    pieces.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pieces)
}

fn plan(root: &Root, before: &Manifest, piece: &Piece, force: bool) -> Result<Act, Error> {
    let wanted = mark_of(&piece.contents);
    let found = mark_at(root, &piece.path)?;
    Ok(match (found, before.entry(&piece.path)) {
        (None, _) => Act::Create,
        (Some(found), Some(_)) if found == wanted => Act::Unchanged,
        (Some(found), None) if found == wanted => Act::Present,
        (Some(found), Some(entry)) if found == entry.mark => Act::Replace,
        (Some(found), _) if force && found != "other" => Act::Replace,
        (Some(_), Some(_)) => Act::Changed,
        (Some(_), None) => Act::Foreign,
    })
}

fn carry_out(
    root: &Root,
    before: &Manifest,
    pieces: &[Piece],
    steps: &[Step],
    kept: Vec<Entry>,
) -> Result<(), Error> {
    let ours = |path: &str| {
        let step = steps.iter().find(|step| step.path == path);
        step.is_some_and(|step| step.act != Act::Present)
    };
    let mut files = kept;
    files.extend(
        pieces
            .iter()
            .filter(|piece| ours(&piece.path))
            .map(|piece| Entry { path: piece.path.clone(), mark: mark_of(&piece.contents) }),
    );
    let mut folders = before.folders.clone();
    let parents = pieces.iter().filter_map(|piece| piece.path.rsplit_once('/'));
    for (parent, _) in parents.chain(MANIFEST.rsplit_once('/')) {
        folders.extend(root.missing(parent));
    }
    folders.sort();
    folders.dedup();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let after = Manifest { schema_version: 1, version, files, folders };
    after.write(root)?;
    for step in steps {
        let piece = pieces.iter().find(|piece| piece.path == step.path);
        match (step.act, piece.map(|piece| &piece.contents)) {
            (Act::Create | Act::Replace, Some(Contents::File(bytes, mode))) => {
                root.write(&step.path, bytes, *mode)?;
            }
            (Act::Create | Act::Replace, Some(Contents::Link(target))) => {
                root.link(&step.path, target)?;
            }
            (Act::Remove, _) => root.remove(&step.path)?,
            _ => {}
        }
    }
    Ok(())
}

fn departure(root: &Root, entry: &Entry) -> Result<Act, Error> {
    Ok(match mark_at(root, &entry.path)? {
        None => Act::Gone,
        Some(mark) if mark == entry.mark => Act::Remove,
        Some(_) => Act::Kept,
    })
}

/// `netvsc uninstall`.
///
/// # Errors
/// If the list of what was put in place, or a file, cannot be read or removed.
pub fn uninstall(args: &UninstallArgs) -> Result<(), Error> {
    let root = Root::open(&args.root)?;
    let manifest = Manifest::read(&root)?;
    let mut steps = Vec::new();
    for entry in &manifest.files {
        steps.push(Step { path: entry.path.clone(), act: departure(&root, entry)? });
    }
    if !args.dry_run {
        for step in steps.iter().filter(|step| step.act == Act::Remove) {
            root.remove(&step.path)?;
        }
        root.remove(MANIFEST)?;
        let mut folders = manifest.folders.clone();
        // Those within others first.
        folders.sort_by(|a, b| b.cmp(a));
        for folder in folders {
            root.remove_folder(&folder);
        }
    }
    say(&args.root, args.dry_run, !args.dry_run, &steps, &args.output)
}

fn say(
    root: &Path,
    dry_run: bool,
    done: bool,
    steps: &[Step],
    output: &OutputArgs,
) -> Result<(), Error> {
    let changes = |step: &Step| matches!(step.act, Act::Create | Act::Replace | Act::Remove);
    let next: &[&str] = if steps.iter().any(changes) { &NEXT } else { &[] };
    if output.json() {
        let plan = Plan { schema_version: SCHEMA_VERSION, root, dry_run, done, steps, next };
        return print_json(&plan, output);
    }
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!("{}: {}\n", step.path, step.act.words()));
    }
    if steps.is_empty() {
        text.push_str("nothing to do\n");
    }
    if done && !next.is_empty() {
        text.push_str("\nnext:\n");
        for line in next {
            text.push_str(&format!("  {line}\n"));
        }
    }
    print(&text)
}
