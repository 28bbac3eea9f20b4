//! A guest in one file.
//!
//! An archive is a tar file: a mark first, then everything that was read in the order of its paths, then a mark that it is
//! whole. It names no time, no user and no machine, so the same guest gives the same bytes.
//!
//! An archive comes from somebody else. It is unpacked into a folder of its own that goes afterwards; only files, folders
//! and links are taken, nothing through a link, and nothing past the limits below. What is read there later cannot leave
//! it either.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use netvsc_linux::inventory::{Collection, Kept};
use tar::{Archive, Builder, EntryType, Header};
use tempfile::TempDir;

use crate::error::Error;

/// The first entry: what this is.
const FIRST: &str = "netvsc/collected";
/// The last entry, so that an archive that was cut off is known.
const LAST: &str = "netvsc/whole";
/// What the first entry says.
const VERSION: &[u8] = b"netvsc collect 1\n";
/// Most entries.
const ENTRY_LIMIT: usize = 1 << 18;
/// Longest file, in bytes.
const FILE_LIMIT: u64 = 64 << 20;
/// All files together, in bytes.
const TOTAL_LIMIT: u64 = 256 << 20;
/// Longest path or target of a link, in bytes.
const PATH_LIMIT: usize = 1024;

/// Writes an archive.
///
/// # Errors
/// If it cannot be written.
pub fn pack(collection: &Collection, out: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(out);
    file(&mut archive, FIRST, VERSION)?;
    for (path, kept) in collection {
        match kept {
            Kept::Folder => {
                let mut header = header(EntryType::Directory, 0o755, 0);
                archive.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Kept::File(bytes) => file(&mut archive, path, bytes)?,
            Kept::Link(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    file(&mut archive, LAST, format!("{}\n", collection.len()).as_bytes())?;
    archive.into_inner()?.flush()
}

fn file(archive: &mut Builder<impl Write>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    archive.append_data(&mut header(EntryType::Regular, 0o644, length), path, bytes)
}

/// Without time and owner.
fn header(kind: EntryType, mode: u32, length: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(length);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A guest that was unpacked. It goes with this value.
#[derive(Debug)]
pub struct Unpacked {
    folder: TempDir,
}

impl Unpacked {
    /// Its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.folder.path()
    }
}

/// Unpacks an archive; `-` is standard input.
///
/// # Errors
/// [`Error::Archive`] if it cannot be read, is damaged, or holds what it should not.
pub fn unpack(path: &Path) -> Result<Unpacked, Error> {
    let refused = |why: String| Error::Archive { path: path.to_owned(), why };
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(path).map_err(|error| refused(error.to_string()))?;
        Box::new(io::BufReader::new(file))
    };
    let folder = TempDir::with_prefix("netvsc-").map_err(|error| refused(error.to_string()))?;
    let unpacked = Unpacked { folder };
    Unpacking::new(unpacked.root()).all(input).map_err(refused)?;
    Ok(unpacked)
}

/// An archive while it is being unpacked.
struct Unpacking<'a> {
    root: &'a Path,
    /// Links come last: while there are none, no path can lead through one.
    links: Vec<(PathBuf, PathBuf)>,
    entries: usize,
    total: u64,
    whole: bool,
}

impl<'a> Unpacking<'a> {
    const fn new(root: &'a Path) -> Self {
        Self { root, links: Vec::new(), entries: 0, total: 0, whole: false }
    }

    fn all(mut self, input: impl Read) -> Result<(), String> {
        // What is read to find the beginning of a file is bounded as well: tar lets paths be of any length.
        let most = TOTAL_LIMIT + 4096 * u64::try_from(ENTRY_LIMIT).unwrap_or(u64::MAX);
        let mut archive = Archive::new(input.take(most));
        let entries = archive.entries().map_err(|error| broken(&error))?;
        for entry in entries {
            let entry = entry.map_err(|error| broken(&error))?;
            self.entry(entry)?;
        }
        if !self.whole {
            return Err("its end is missing; it was cut off".into());
        }
        self.make_links()
    }

    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), String> {
        let path = place(&entry.path_bytes())?;
        let shown = path.display().to_string();
        self.entries += 1;
        if self.entries == 1 {
            let mut text = Vec::new();
            let limit = u64::try_from(VERSION.len()).unwrap_or(u64::MAX) + 1;
            let read = (&mut entry).take(limit).read_to_end(&mut text);
            if shown != FIRST || read.is_err() || text != VERSION {
                return Err("it is not one, or one of another version".into());
            }
            return Ok(());
        }
        if self.entries > ENTRY_LIMIT {
            return Err(format!("expected at most {ENTRY_LIMIT} entries"));
        }
        if self.whole {
            return Err(format!("`{shown}` comes after its end"));
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                let made = fs::create_dir_all(self.root.join(&path));
                made.map_err(|error| format!("`{shown}`: {error}"))
            }
            EntryType::Regular => self.file(&path, &mut entry),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() || target.len() > PATH_LIMIT || target.contains(&0) {
                    return Err(format!("`{shown}` links to no path"));
                }
                let target = String::from_utf8(target.into_owned());
                let target = target.map_err(|_| format!("`{shown}` links to no text"))?;
                self.links.push((path, target.into()));
                Ok(())
            }
            other => {
                Err(format!("`{shown}` is neither file, folder nor symbolic link but {other:?}"))
            }
        }
    }

    fn file(&mut self, path: &Path, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), String> {
        let shown = path.display().to_string();
        let length = entry.header().size().map_err(|error| broken(&error))?;
        self.total = self.total.saturating_add(length);
        if length > FILE_LIMIT {
            return Err(format!("`{shown}` has {length} bytes, expected at most {FILE_LIMIT}"));
        }
        if self.total > TOTAL_LIMIT {
            return Err(format!("its files have more than {TOTAL_LIMIT} bytes together"));
        }
        if shown == LAST {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(|error| broken(&error))?;
            // Without the first entry and this one.
            let expected = self.entries - 2;
            if text.trim().parse() != Ok(expected) {
                let found = text.trim().chars().take(20).collect::<String>();
                return Err(format!(
                    "it has {expected} entries and says `{}`",
                    found.escape_debug()
                ));
            }
            self.whole = true;
            return Ok(());
        }
        let failed = |error: io::Error| format!("`{shown}`: {error}");
        let at = self.root.join(path);
        if let Some(folder) = at.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // One path twice is one too many.
        let mut out = File::create_new(&at).map_err(failed)?;
        let copied = io::copy(entry, &mut out).map_err(|error| broken(&error))?;
        if copied == length { Ok(()) } else { Err("its end is missing; it was cut off".into()) }
    }

    fn make_links(&self) -> Result<(), String> {
        let mut made = BTreeSet::new();
        for (path, target) in &self.links {
            let shown = path.display();
            if path.ancestors().skip(1).any(|above| made.contains(above)) {
                return Err(format!("`{shown}` is below a link"));
            }
            let at = self.root.join(path);
            if let Some(folder) = at.parent() {
                fs::create_dir_all(folder).map_err(|error| format!("`{shown}`: {error}"))?;
            }
            symlink(target, &at).map_err(|error| format!("`{shown}`: {error}"))?;
            made.insert(path.as_path());
        }
        Ok(())
    }
}

/// Why it cannot be read. What the decoder says may hold what stands in the file, which is perhaps none of ours.
fn broken(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => error.to_string(),
        None => "it is damaged or cut off, or no such archive".to_owned(),
    }
}

/// Where an entry goes, from the root.
fn place(bytes: &[u8]) -> Result<PathBuf, String> {
    let shown = || String::from_utf8_lossy(bytes).chars().take(100).collect::<String>();
    let text = std::str::from_utf8(bytes)
        .map_err(|_| format!("`{}` is no text", shown().escape_debug()))?;
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || text.is_empty() || text.contains('\0') {
        return Err(format!("`{}` leads out of it", shown().escape_debug()));
    }
    if text.len() > PATH_LIMIT {
        return Err(format!("`{}..` is longer than {PATH_LIMIT} bytes", shown().escape_debug()));
    }
    Ok(path.components().collect())
}
