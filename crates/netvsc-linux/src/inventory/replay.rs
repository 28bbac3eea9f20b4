//! What a collection holds besides files of the guest, and what it does not hold.

use std::fmt::Write as _;

use super::clock;
use super::log::{KernelLog, Subject};
use super::machine;
use super::model::Snapshot;
use super::record::{Collection, Kept};
use super::tree::{FILE_LIMIT, Tree};

/// What could not be read when a guest was collected: lines of path and reason, with a tab between.
const REFUSALS: &str = "netvsc/unreadable";
/// Where the kernel log is.
const LOG: &str = "dev/kmsg";

/// Folders whose files people write, and write passwords into.
const WRITTEN: [&str; 3] = ["etc/", "run/NetworkManager/", "run/netplan/"];
/// What the keys of secrets are called, or have in their names.
const SECRET: [&str; 9] =
    ["psk", "password", "passwd", "passphrase", "secret", "private", "token", "wep", "preshared"];
/// What the keys of secrets are called, and others have in their names.
const SECRET_WORDS: [&str; 4] = ["key", "pin", "shared", "pass"];
/// What is there instead.
const REMOVED: &str = "<removed>";

/// Adds what time it was, the kernel log, as far as it was understood, and what could not be read. Takes secrets out.
pub(super) fn finish(collection: &mut Collection, snapshot: &Snapshot) {
    let mut add = |path: &str, text: String| {
        if let Some((folder, _)) = path.rsplit_once('/') {
            collection.insert(folder.to_owned(), Kept::Folder);
        }
        collection.insert(path.to_owned(), Kept::File(text.into_bytes()));
    };
    add(clock::FILE, clock::recorded(snapshot.uptime));
    if snapshot.log.read {
        add(LOG, records(&snapshot.log));
    }
    if !snapshot.unreadable.is_empty() {
        let plain = |text: &str| text.replace(['\t', '\n'], " ");
        let mut text = String::new();
        for note in &snapshot.unreadable {
            _ = writeln!(text, "{}\t{}", plain(&note.path), plain(&note.why));
        }
        add(REFUSALS, text);
    }
    if snapshot.live && snapshot.links.iter().any(|link| !link.shares.is_empty()) {
        add(super::shares::FILE, super::shares::recorded(snapshot));
    }
    if snapshot.live && !snapshot.machine.samples.is_empty() {
        add(machine::SAMPLES, machine::recorded(&snapshot.machine.samples));
    }
    for (path, kept) in collection {
        if let Kept::File(bytes) = kept
            && WRITTEN.iter().any(|folder| path.starts_with(folder))
        {
            *bytes = without_secrets(bytes);
        }
    }
}

/// Notes again what could not be read then.
pub(super) fn refusals(tree: &mut Tree) {
    let text = tree.contents(REFUSALS, FILE_LIMIT).unwrap_or_default();
    for (path, why) in text.lines().filter_map(|line| line.split_once('\t')) {
        tree.note_again(path, why);
    }
}

/// The lines that were understood, as records of the kernel. The rest of the log is nobody's business.
fn records(log: &KernelLog) -> String {
    let mut text = String::new();
    if log.complete {
        // That it goes back to the boot is seen by its first number.
        text.push_str("6,0,0,-;(collected by netvsc)\n");
    }
    for (number, line) in log.lines.iter().enumerate() {
        let words: String = line.text.chars().filter(|c| !c.is_control()).collect();
        _ = writeln!(text, "6,{},{},-;{words}", number + 1, line.at.as_micros());
        match line.subject {
            Subject::Vmbus(guid) => _ = writeln!(text, " SUBSYSTEM=vmbus\n DEVICE=+vmbus:{guid}"),
            Subject::Pci(at) => _ = writeln!(text, " SUBSYSTEM=pci\n DEVICE=+pci:{at}"),
            Subject::Nobody => {}
        }
    }
    text
}

/// The same file with something else in place of every secret.
fn without_secrets(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    // Deeper lines below a key without a value belong to it, as in YAML.
    let mut block: Option<usize> = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let indent = text.len() - text.trim_start().len();
        let blank = text.trim().is_empty();
        if block.is_some_and(|depth| !blank && indent <= depth) {
            block = None;
        }
        if block.is_some() && !blank {
            out.extend_from_slice(text.get(..indent).unwrap_or_default().as_bytes());
            out.extend_from_slice(REMOVED.as_bytes());
            out.push(b'\n');
            continue;
        }
        let Some(end) = secret(&text) else {
            out.extend_from_slice(line);
            continue;
        };
        let value = text.get(end..).unwrap_or_default().trim();
        if value.is_empty() || value.starts_with(['|', '>']) {
            block = Some(indent);
            out.extend_from_slice(line);
        } else {
            out.extend_from_slice(text.get(..end).unwrap_or_default().as_bytes());
            out.extend_from_slice(REMOVED.as_bytes());
            out.push(b'\n');
        }
    }
    out
}

/// Where the secret of a line begins, if it has one.
fn secret(line: &str) -> Option<usize> {
    let start = line.len() - line.trim_start_matches([' ', '\t', '-', '"', '\'']).len();
    let rest = line.get(start..)?;
    if rest.starts_with(['#', ';', '[']) {
        return None;
    }
    let length = rest.find(['=', ':', ' ', '\t', '"', '\''])?;
    let key = rest.get(..length)?.to_ascii_lowercase();
    let secret = SECRET.iter().any(|word| key.contains(word))
        || SECRET_WORDS
            .iter()
            .any(|word| key.trim_end_matches(|c: char| c.is_ascii_digit()) == *word);
    let rest = rest.get(length..)?;
    let value =
        length + rest.len() - rest.trim_start_matches(['=', ':', ' ', '\t', '"', '\'']).len();
    secret.then_some(start + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_every_syntax_are_taken_out() {
        for (line, left) in [
            ("psk=hunter2\n", "psk=<removed>\n"),
            ("wep-key0=hunter2\n", "wep-key0=<removed>\n"),
            ("private-key-password=hunter2", "private-key-password=<removed>\n"),
            ("  password: \"hunter2\"\n", "  password: \"<removed>\n"),
            ("    \"my-wifi-secret\": hunter2\n", "    \"my-wifi-secret\": <removed>\n"),
            ("    wpa-psk hunter2\n", "    wpa-psk <removed>\n"),
            ("      - key: hunter2\n", "      - key: <removed>\n"),
            ("KEY1=hunter2\n", "KEY1=<removed>\n"),
            ("PASSWORD = hunter2\n", "PASSWORD = <removed>\n"),
            (
                "password: |\n  hunter2\n  hunter2\nnext: x\n",
                "password: |\n  <removed>\n  <removed>\nnext: x\n",
            ),
            ("keys:\n  private:\n    hunter2\n", "keys:\n  private:\n    <removed>\n"),
        ] {
            let text = String::from_utf8(without_secrets(line.as_bytes())).unwrap();
            assert_eq!(text, left);
            assert!(!text.contains("hunter2"));
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let text = "# password\n[802-11-wireless-security]\nkey-mgmt=wpa-psk\n[Match]\nProperty=NETVSC_ROLE=vf\n\
                    Name=eth*\nethernets:\n  eth0:\n    match: {macaddress: 7c:1e:52:25:55:d2}\n";
        let bytes = [text.as_bytes(), &[0xff, 0xfe]].concat();
        assert_eq!(without_secrets(&bytes), bytes);
    }
}
