//! What was put in place, so that exactly that can be taken away.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::pieces::Contents;
use super::root::{Found, Root, RootError};
use crate::error::Error;

/// Where it is.
pub const PATH: &str = "/var/lib/netvsc/installed.json";

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Version of this format.
    pub(super) schema_version: u32,
    /// Version of the program that wrote it.
    pub(super) version: String,
    /// Files and links.
    pub(super) files: Vec<Entry>,
    /// Folders that were made for them.
    pub(super) folders: Vec<String>,
}

/// A file or a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Where, from the root.
    pub(super) path: String,
    /// Mark of what was put there.
    pub(super) mark: String,
}

impl Manifest {
    /// The one below a root; an empty one if there is none.
    pub(super) fn read(root: &Root) -> Result<Self, Error> {
        let broken = |why: String| Error::Manifest { path: PATH, why };
        match root.look(PATH)? {
            Found::Nothing => Ok(Self { schema_version: 1, ..Self::default() }),
            Found::File(bytes) => {
                let manifest: Self =
                    serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
                if manifest.schema_version != 1 {
                    let version = manifest.schema_version;
                    return Err(broken(format!("expected schema_version 1, found {version}")));
                }
                let files = manifest.files.iter().map(|entry| &entry.path);
                match files.chain(&manifest.folders).find(|path| !sound(path)) {
                    Some(path) => Err(broken(format!("`{path}` is no path from the root"))),
                    None => Ok(manifest),
                }
            }
            Found::Link(_) | Found::Other => Err(broken("expected a file".into())),
        }
    }

    pub(super) fn write(&self, root: &Root) -> Result<(), Error> {
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::Output(error.into()))?;
        text.push(b'\n');
        Ok(root.write(PATH, &text, 0o644)?)
    }

    pub(super) fn entry(&self, path: &str) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.path == path)
    }
}

/// Whether a path starts at the root and does not climb.
fn sound(path: &str) -> bool {
    let parts = path.strip_prefix('/').map(|path| path.split('/'));
    parts.is_some_and(|mut parts| !parts.any(|part| part.is_empty() || part == "." || part == ".."))
}

/// What tells whether something is still what was put there.
pub(super) fn mark_of(contents: &Contents) -> String {
    match contents {
        Contents::File(bytes, _) => mark_of_bytes(bytes),
        Contents::Link(target) => format!("link:{target}"),
    }
}

/// The same for what is there now; none if nothing is.
pub(super) fn mark_of_found(found: &Found) -> Option<String> {
    match found {
        Found::Nothing => None,
        Found::File(bytes) => Some(mark_of_bytes(bytes)),
        Found::Link(target) => Some(format!("link:{target}")),
        Found::Other => Some("other".into()),
    }
}

fn mark_of_bytes(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

/// The mark of what is at a path now.
pub(super) fn mark_at(root: &Root, path: &str) -> Result<Option<String>, RootError> {
    Ok(mark_of_found(&root.look(path)?))
}
