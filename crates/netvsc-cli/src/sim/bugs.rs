//! The bugs that can be put in on purpose, and where they sit.

/// A bug. In the code stands `seeded!("name")` where it makes a difference.
pub(super) struct Bug {
    /// Its name.
    pub(super) name: &'static str,
    /// The module where it is, by its source file below `crates`.
    pub(super) file: &'static str,
    /// What it does.
    pub(super) what: &'static str,
    /// The scenario that shows it.
    pub(super) found_by: &'static str,
}

const fn bug(
    name: &'static str,
    file: &'static str,
    what: &'static str,
    found_by: &'static str,
) -> Bug {
    Bug { name, file, what, found_by }
}

const RULES: &str = "netvsc/src/pairing/rules.rs";
const SETTLE: &str = "netvsc/src/pairing/settle.rs";
const PAIRING: &str = "netvsc/src/pairing/mod.rs";
const FAILOVER: &str = "netvsc/src/failover.rs";
const ADAPTER: &str = "netvsc/src/adapter.rs";
const SEND: &str = "netvsc/src/adapter/send.rs";
const NIC_SEND: &str = "netvsc/src/nic/send.rs";
const PATH: &str = "netvsc/src/nic/path.rs";
const SLOTS: &str = "netvsc/src/nic/slots.rs";
const LINK: &str = "netvsc/src/nic/link.rs";
const CHANNEL: &str = "vmbus/src/channel.rs";
const CHANNELS: &str = "vmbus/src/bus/channels.rs";
const MEMORY: &str = "vmbus/src/bus/memory.rs";
const PCI_BUS: &str = "vpci/src/bus/mod.rs";
const GUEST: &str = "netvsc-cli/src/guest/mod.rs";
const GUEST_PCI: &str = "netvsc-cli/src/guest/pci.rs";
const GUEST_NIC: &str = "netvsc-cli/src/guest/nic.rs";

/// All of them.
pub(super) const BUGS: &[Bug] = &[
    bug(
        "ignore-mac",
        RULES,
        "a port pairs by serial alone, whatever its MAC",
        "one-serial-for-three-nics",
    ),
    bug(
        "match-current-mac",
        GUEST_NIC,
        "a NIC whose MAC was changed counts as one with that MAC",
        "mac-changed",
    ),
    bug(
        "mac-is-enough",
        RULES,
        "a port whose serial names another NIC pairs by MAC",
        "serial-of-one-mac-of-another",
    ),
    bug(
        "keep-serial",
        SETTLE,
        "a serial counts on after the host has withdrawn it",
        "serial-reused-by-another-nic",
    ),
    bug("zero-serial-is-none", PAIRING, "serial 0 is taken for no serial", "serial-zero"),
    bug(
        "rebind-before-unbind",
        SETTLE,
        "a NIC gets its next port before it has let go of the last",
        "namespace-move",
    ),
    bug(
        "forget-standby",
        PAIRING,
        "nobody looks for another port when one was let go",
        "second-vf-takes-over",
    ),
    bug("wait-in-silence", SETTLE, "what never comes is not reported", "vf-that-is-late"),
    bug(
        "emulated-is-a-nic",
        GUEST,
        "an emulated card takes part in pairing",
        "offer-before-association",
    ),
    bug(
        "transmit-before-completion",
        FAILOVER,
        "frames leave on the VF before the host has switched",
        "completion-after-a-second",
    ),
    bug(
        "switch-with-transmit-on",
        FAILOVER,
        "frames leave on the VF until the host has left it",
        "carrier-lost",
    ),
    bug(
        "skip-resend",
        FAILOVER,
        "what a vanished VF never confirmed is forgotten",
        "torn-away-unconfirmed",
    ),
    bug(
        "ignore-host-override",
        FAILOVER,
        "the host's own switches are not obeyed",
        "host-undoes-the-switch",
    ),
    bug(
        "never-time-out",
        FAILOVER,
        "an answer that does not come is waited for without end",
        "switch-lost",
    ),
    bug(
        "never-retry",
        FAILOVER,
        "what the host has undone or lost is not asked for again",
        "host-undoes-the-switch",
    ),
    bug(
        "trust-old-switch",
        FAILOVER,
        "a VF that is named again is taken for the one in use",
        "vf-back-unheard",
    ),
    bug(
        "skip-drain",
        FAILOVER,
        "frames do not wait until the path that was left is empty",
        "stalled-vf-asked-back",
    ),
    bug("ignore-carrier", FAILOVER, "frames leave on a VF without carrier", "carrier-lost"),
    bug(
        "release-before-completion",
        FAILOVER,
        "a VF is let go before the host has left it",
        "eject-during-join",
    ),
    bug(
        "switch-without-association",
        FAILOVER,
        "the host is asked for a VF that it has not announced",
        "offer-before-association",
    ),
    bug(
        "confirm-too-many",
        SEND,
        "one frame more counts as confirmed than the VF has confirmed",
        "carrier-back-in-a-burst",
    ),
    bug(
        "deaf-to-vf",
        ADAPTER,
        "nothing is received from a VF that frames do not leave on",
        "eject-during-join",
    ),
    bug(
        "deaf-to-synthetic",
        ADAPTER,
        "nothing is received from the synthetic path while the VF is in use",
        "emulated-nic-first",
    ),
    bug(
        "leak-section",
        SLOTS,
        "send sections get lost, some of those that come back",
        "emulated-nic-first",
    ),
    bug("share-sections", SLOTS, "two frames are put into one section", "emulated-nic-first"),
    bug(
        "never-complete",
        LINK,
        "every eighth packet of the host is not completed",
        "emulated-nic-first",
    ),
    bug("complete-twice", LINK, "packets of the host are completed twice", "emulated-nic-first"),
    bug(
        "forget-flush",
        NIC_SEND,
        "frames stay in the open batch until something else happens",
        "two-nics-one-mac-one-serial",
    ),
    bug(
        "drop-switch-when-full",
        PATH,
        "a switch that finds no room in the ring is dropped",
        "carrier-back-in-a-burst",
    ),
    bug(
        "forget-to-rearm",
        CHANNEL,
        "the peer is not asked to ring before resting",
        "emulated-nic-first",
    ),
    bug(
        "ignore-rescind",
        CHANNELS,
        "a device that the host takes away stays",
        "torn-away-under-load",
    ),
    bug(
        "forget-release",
        CHANNELS,
        "the id of a channel is never given back",
        "new-serial-after-servicing",
    ),
    bug(
        "lose-gpadl-teardown",
        MEMORY,
        "memory that comes back is not noticed",
        "same-serial-again",
    ),
    bug(
        "forget-eject-complete",
        PCI_BUS,
        "the host is not told that its function is free",
        "same-serial-again",
    ),
    bug(
        "answer-eject-at-once",
        GUEST_PCI,
        "a function is given back while a NIC still uses it",
        "eject-during-join",
    ),
    bug(
        "forget-unbound",
        GUEST_PCI,
        "pairing never hears that a port was let go",
        "function-of-three-ports-asked-back",
    ),
];

/// The bug with this name.
#[cfg(feature = "seeded-bugs")]
fn named(name: &str) -> Result<&'static Bug, crate::error::Error> {
    let known = BUGS.iter().find(|bug| bug.name == name);
    known.ok_or_else(|| crate::error::Error::Run(format!("no bug is called {name}")))
}

/// Puts a bug in, or takes the one that is in out.
#[cfg(feature = "seeded-bugs")]
pub(super) fn choose(name: Option<&str>) -> Result<(), crate::error::Error> {
    name.map(named).transpose()?;
    vmbus::seeded::choose(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn crates() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// Names that a source asks for.
    fn asked(text: &str) -> BTreeSet<&str> {
        text.split("seeded!(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn the_document_lists_every_bug_and_no_other() {
        let path = crates().join("../docs/SIMULATION.md");
        let text = std::fs::read_to_string(path).expect("the document");
        let row = |bug: &Bug| {
            format!("| `{}` | {} | {} | {} |", bug.name, bug.file, bug.what, bug.found_by)
        };
        let bugs = text.lines().skip_while(|line| !line.starts_with("| bug |"));
        let rows: Vec<&str> = bugs.skip(2).take_while(|line| line.starts_with("| `")).collect();
        for expected in BUGS.iter().map(row) {
            assert!(rows.contains(&expected.as_str()), "no row {expected}");
        }
        let known =
            |row: &&str| BUGS.iter().any(|bug| row.starts_with(&format!("| `{}` |", bug.name)));
        assert_eq!(rows.iter().filter(|row| known(row)).count(), BUGS.len());
        assert!(rows.iter().all(known), "a bug that is not there: {rows:?}");
    }

    #[test]
    fn every_bug_of_the_table_is_where_the_table_says() {
        for Bug { name, file, .. } in BUGS {
            let text = std::fs::read_to_string(crates().join(file)).expect("a source");
            assert!(asked(&text).contains(name), "{name} is not in {file}");
        }
        let scenario = |name| super::super::scenario::all().any(|known| known.name == name);
        let unknown = BUGS.iter().find(|bug| !scenario(bug.found_by)).map(|bug| bug.found_by);
        assert_eq!(unknown, None, "there is no such scenario");
        let names: BTreeSet<_> = BUGS.iter().map(|bug| bug.name).collect();
        assert_eq!(names.len(), BUGS.len(), "a name stands twice");
        let files: BTreeSet<_> = BUGS.iter().map(|bug| bug.file).collect();
        for file in files {
            let text = std::fs::read_to_string(crates().join(file)).expect("a source");
            let strange: Vec<_> = asked(&text).difference(&names).copied().collect();
            assert!(strange.is_empty(), "{file} asks for {strange:?}, which the table lacks");
        }
    }
}
