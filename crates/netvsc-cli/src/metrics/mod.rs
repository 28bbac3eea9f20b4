//! `netvsc metrics`: what is known of a guest's NICs, for Prometheus.

pub mod args;
mod driven;
pub mod families;
mod serve;
pub mod text;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use netvsc_linux::check::{self, Guest};
use netvsc_linux::inventory::{Depth, Snapshot};
use netvsc_linux::relation::Relations;
use serde::Serialize;

use self::args::MetricsArgs;
use self::families::{Family, Observer};
use crate::error::Error;
use crate::inspect::document::SCHEMA_VERSION;
use crate::inspect::{NO_HYPERV, complain, print, print_json, snapshot};
use crate::live::ask_all;

/// Metrics as JSON.
#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    metrics: &'a [Family],
}

/// `netvsc metrics`.
///
/// # Errors
/// If the root cannot be used, nobody can listen there, or something cannot be written.
pub fn metrics(args: &MetricsArgs) -> Result<(), Error> {
    let mut observer = Observer { per_channel: args.per_channel, ..Observer::default() };
    if let Some(listen) = &args.listen {
        return serve::serve(listen, &mut || {
            let (_, families, _) = scan(args, &mut observer)?;
            text::text(&families)
        });
    }
    let (snapshot, families, silent) = scan(args, &mut observer)?;
    complain(&snapshot);
    for (path, why) in &silent {
        crate::remark(format_args!("cannot ask {}: {why}", path.display()));
    }
    if !snapshot.hyperv {
        crate::remark(NO_HYPERV);
    }
    if args.output.json() {
        let document = Document { schema_version: SCHEMA_VERSION, metrics: &families };
        return print_json(&document, &args.output);
    }
    let text = text::text(&families)?;
    match &args.textfile {
        Some(path) => {
            put(path, &text).map_err(|source| Error::Textfile { path: path.clone(), source })
        }
        None => print(&String::from_utf8_lossy(&text)),
    }
}

/// What was looked at, what follows from it, and runs that did not say how they stand.
type Scan = (Snapshot, Vec<Family>, Vec<(PathBuf, String)>);

/// Looks at the guest once.
fn scan(args: &MetricsArgs, observer: &mut Observer) -> Result<Scan, Error> {
    let snapshot = snapshot(&args.source, Depth::Checks)?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    observer.at = since.ok().filter(|_| snapshot.live).map(|since| since.as_secs_f64().floor());
    observer.note(&snapshot);
    let answers = ask_all(args.source.sysfs_root.as_deref().unwrap_or(Path::new("/")));
    let silent = observer.hear(answers);
    let relations = Relations::of(&snapshot);
    let guest = Guest::new(&snapshot, &relations);
    let report = check::run(&guest, |_| true);
    let families = families::of(&snapshot, &relations, &report, observer);
    Ok((snapshot, families, silent))
}

/// Puts a file in place as a whole: whoever reads it finds the old one or the new one.
fn put(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .prefix(".netvsc-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
