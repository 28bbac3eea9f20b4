//! Everything that was read, so that it can be read again elsewhere.
//!
//! What is kept has the real structure: a file is kept where it really is, and the links on the way to it are kept as
//! links. So the same reads, by whatever paths, find the same.

use std::collections::BTreeMap;

/// How many links are followed on the way to one file.
const LINK_LIMIT: usize = 64;

/// Something that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A directory.
    Folder,
    /// A file with these contents; empty for one that was only seen.
    File(Vec<u8>),
    /// A link to this.
    Link(String),
}

/// What was read, by its real path from the root, without a slash in front.
pub type Collection = BTreeMap<String, Kept>;

/// Writes down what is read.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    kept: Collection,
    /// What was listed and could not be read then.
    refused: Vec<String>,
}

impl Recorder {
    pub(crate) fn into_collection(mut self) -> Collection {
        for path in &self.refused {
            if matches!(self.kept.get(path), Some(Kept::File(bytes)) if bytes.is_empty()) {
                self.kept.remove(path);
            }
        }
        self.kept
    }

    fn above(&mut self, path: &str) {
        let mut rest = path;
        while let Some((folder, _)) = rest.rsplit_once('/') {
            if self.kept.insert(folder.to_owned(), Kept::Folder) == Some(Kept::Folder) {
                break;
            }
            rest = folder;
        }
    }

    pub(crate) fn folder(&mut self, path: &str) {
        if !path.is_empty() {
            self.above(path);
            self.kept.insert(path.to_owned(), Kept::Folder);
        }
    }

    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) {
        self.above(path);
        self.kept.insert(path.to_owned(), Kept::File(bytes.to_vec()));
    }

    /// A file that is there, whatever is in it.
    pub(crate) fn seen(&mut self, path: &str) {
        self.above(path);
        self.kept.entry(path.to_owned()).or_insert_with(|| Kept::File(Vec::new()));
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.above(path);
        self.kept.insert(path.to_owned(), Kept::Link(target.to_owned()));
    }

    pub(crate) fn refused(&mut self, path: String) {
        self.refused.push(path);
    }

    /// Finds out where a path really leads, keeping the links on the way. None for paths that lead nowhere.
    pub(crate) fn real(
        &mut self,
        path: &str,
        read_link: impl Fn(&str) -> Option<String>,
    ) -> Option<String> {
        let mut done: Vec<String> = Vec::new();
        let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => {}
                ".." => drop(done.pop()),
                _ => {
                    done.push(part);
                    let at = done.join("/");
                    let Some(target) = read_link(&at) else { continue };
                    links += 1;
                    if links > LINK_LIMIT {
                        return None;
                    }
                    self.link(&at, &target);
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    left.extend(target.split('/').rev().map(str::to_owned));
                }
            }
        }
        Some(done.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(at: &str) -> Option<String> {
        let target = match at {
            "sys/class/net/eth0" => "../../devices/a/net/eth0",
            "sys/devices/a/net/eth0/device" => "../..",
            "lib" => "/usr/lib",
            "loop" => "loop",
            _ => return None,
        };
        Some(target.to_owned())
    }

    #[test]
    fn a_file_is_kept_where_it_is_and_the_links_as_links() {
        let mut recorder = Recorder::default();
        let real = recorder.real("sys/class/net/eth0/device/id", links).unwrap();
        assert_eq!(real, "sys/devices/a/id");
        recorder.file(&real, b"14\n");
        let kept = recorder.into_collection();
        assert_eq!(kept["sys/class/net/eth0"], Kept::Link("../../devices/a/net/eth0".into()));
        assert_eq!(kept["sys/devices/a/net/eth0/device"], Kept::Link("../..".into()));
        assert_eq!(kept["sys/devices/a/id"], Kept::File(b"14\n".to_vec()));
        assert_eq!(kept["sys/devices/a"], Kept::Folder);
    }

    #[test]
    fn absolute_links_begin_at_the_root_and_loops_lead_nowhere() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.real("lib/udev/x", links).as_deref(), Some("usr/lib/udev/x"));
        assert_eq!(recorder.real("loop/x", links), None);
        assert_eq!(recorder.real("../../etc", links).as_deref(), Some("etc"));
    }

    #[test]
    fn what_was_seen_and_could_not_be_read_is_not_kept() {
        let mut recorder = Recorder::default();
        recorder.seen("sys/a/carrier");
        recorder.refused("sys/a/carrier".into());
        recorder.file("sys/a/mtu", b"1500");
        recorder.seen("sys/a/mtu");
        let kept = recorder.into_collection();
        assert!(!kept.contains_key("sys/a/carrier"));
        assert_eq!(kept["sys/a/mtu"], Kept::File(b"1500".to_vec()));
    }
}
