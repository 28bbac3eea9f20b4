//! What must hold, as plain functions of plain facts: whoever watches a system fills the facts in.
//!
//! Nothing here knows a machine of guest or host, so that every rule can be shown to notice what it is there for.

use netvsc::{MacAddress, Path};

/// Frames of one NIC that may be on the switch at once, by far.
pub(super) const QUEUED: u64 = 50_000;
/// Frames that a guest may hold for a VF that has not confirmed them: what its replay buffer takes.
pub(super) const UNCONFIRMED: usize = 512;
/// Pages that a guest may share for each NIC, by far: twice its rings, buffers and VF.
pub(super) const PAGES: usize = 4096;

/// A rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("the switch lost count of frames: {from_guest} from the guest, {from_peer} for it")]
    Count { from_guest: i128, from_peer: i128 },
    #[error("{queued} frames queue up on the switch: expected at most {QUEUED}")]
    Queue { queued: u64 },
    #[error("the guest holds {held} frames for its VF: expected at most {UNCONFIRMED}")]
    Held { held: usize },
    #[error("the guest shares {pages} pages: expected at most {most}")]
    Pages { pages: usize, most: usize },
    #[error("paired with the port of MAC {port}: its own is {nic}")]
    PairedMac { nic: MacAddress, port: MacAddress },
    #[error("paired with a port that the host gave to {owner:?}")]
    PairedOwner { owner: Option<usize> },
    #[error("waits without a deadline: {what}")]
    Endless { what: &'static str },
    #[error(
        "all is quiet, the guest takes the host to be on the {guest} path, and it is on {host}"
    )]
    Paths { guest: Path, host: Path },
    #[error(
        "{missing} frames from the guest never arrived, {dropped} of them were dropped where the host had lied"
    )]
    LostOut { missing: u64, dropped: u64 },
    #[error(
        "{missing} frames for the guest are missing; {torn} were torn away, {dropped} dropped or left in a VF where the host had lied"
    )]
    LostIn { missing: u64, torn: u64, dropped: u64 },
    #[error("{dropped} frames were dropped by the switch, and the host had not lied")]
    Dropped { dropped: u64 },
    #[error("{twice} frames from the guest arrived twice, {resent} were sent again")]
    TwiceOut { twice: u64, resent: u64 },
    #[error("{twice} frames for the guest arrived twice")]
    TwiceIn { twice: u64 },
    #[error("{what}: {before} at first, {after} in the end")]
    NotReturned { what: &'static str, before: usize, after: usize },
}

/// A port that a NIC is paired with, by the host's books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PairFacts {
    pub(super) nic_mac: MacAddress,
    /// The port's MAC; `None` if the host has such a port no longer.
    pub(super) port_mac: Option<MacAddress>,
    /// The NIC, whose VF it is.
    pub(super) owner: Option<usize>,
}

/// One NIC when nobody has anything more to do at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) nic: usize,
    pub(super) unaccounted: (i128, i128),
    pub(super) queued: u64,
    pub(super) held: usize,
    pub(super) pair: Option<PairFacts>,
    /// Something that is under way in the guest and has no deadline.
    pub(super) endless: Option<&'static str>,
    /// Both sides' path, if no switch is under way and the host has not lied about it.
    pub(super) paths: Option<(Path, Path)>,
}

impl Moment {
    /// What holds at every step.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let (from_guest, from_peer) = self.unaccounted;
        if (from_guest, from_peer) != (0, 0) {
            return Err(Wrong::Count { from_guest, from_peer });
        }
        if self.queued > QUEUED {
            return Err(Wrong::Queue { queued: self.queued });
        }
        if self.held > UNCONFIRMED {
            return Err(Wrong::Held { held: self.held });
        }
        if let Some(what) = self.endless {
            return Err(Wrong::Endless { what });
        }
        self.check_pair()?;
        match self.paths {
            Some((guest, host)) if guest != host => Err(Wrong::Paths { guest, host }),
            _ => Ok(()),
        }
    }

    fn check_pair(&self) -> Result<(), Wrong> {
        let Some(PairFacts { nic_mac: nic, port_mac, owner }) = self.pair else { return Ok(()) };
        // A port that is gone is no pair for long; that it goes is another rule's.
        let Some(port) = port_mac else { return Ok(()) };
        if port != nic {
            return Err(Wrong::PairedMac { nic, port });
        }
        if owner != Some(self.nic) {
            return Err(Wrong::PairedOwner { owner });
        }
        Ok(())
    }
}

/// The frames of one NIC when none is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    /// Frames from the guest that have not arrived, and that nothing but the path can have lost.
    pub(super) missing_out: u64,
    pub(super) twice_out: u64,
    /// Frames that the guest has sent again.
    pub(super) resent: u64,
    /// The same for the guest.
    pub(super) missing_in: u64,
    pub(super) twice_in: u64,
    /// Frames from the guest, and for it, that the switch dropped.
    pub(super) dropped_out: u64,
    pub(super) dropped_in: u64,
    /// Frames for the guest that went down with VFs that were torn away, and with VFs that it had let go.
    pub(super) torn: u64,
    pub(super) left: u64,
    /// Frames from the guest that were longer than an MTU which it was given after it had taken them, so that no path takes them again.
    pub(super) outgrown: u64,
    /// The host has said what is not so about the path, or has lost a request.
    pub(super) lied: bool,
    /// The NIC was away, and with it who receives.
    pub(super) away: bool,
}

impl Books {
    /// That no frame is missing or doubled without its reason.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let Self { missing_out, missing_in, twice_out, twice_in, resent, torn, .. } = *self;
        let (dropped_out, dropped_in) = (self.dropped_out, self.dropped_in);
        if !self.lied && !self.away && dropped_out + dropped_in > 0 {
            return Err(Wrong::Dropped { dropped: dropped_out + dropped_in });
        }
        let dropped = if self.lied { dropped_out } else { 0 };
        if missing_out > dropped + self.outgrown {
            return Err(Wrong::LostOut { missing: missing_out, dropped });
        }
        // A host that lies about the path gives frames to a VF that the guest has left on its word.
        let dropped = if self.lied { dropped_in + self.left } else { 0 };
        if missing_in > torn + dropped {
            return Err(Wrong::LostIn { missing: missing_in, torn, dropped });
        }
        if twice_out > resent {
            return Err(Wrong::TwiceOut { twice: twice_out, resent });
        }
        if twice_in > 0 {
            return Err(Wrong::TwiceIn { twice: twice_in });
        }
        Ok(())
    }
}

/// That the guest's memory is bounded.
pub(super) fn pages_bounded(pages: usize, nics: usize) -> Result<(), Wrong> {
    let most = PAGES * (nics + 1);
    if pages > most { Err(Wrong::Pages { pages, most }) } else { Ok(()) }
}

/// That as much is in use as before.
pub(super) fn returned(what: &'static str, before: usize, after: usize) -> Result<(), Wrong> {
    if before == after { Ok(()) } else { Err(Wrong::NotReturned { what, before, after }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

    fn moment() -> Moment {
        let pair = PairFacts { nic_mac: MAC, port_mac: Some(MAC), owner: Some(3) };
        Moment {
            nic: 3,
            unaccounted: (0, 0),
            queued: QUEUED,
            held: UNCONFIRMED,
            pair: Some(pair),
            endless: None,
            paths: Some((Path::Vf, Path::Vf)),
        }
    }

    #[test]
    fn a_moment_in_which_all_is_well_is_let_pass() {
        assert_eq!(moment().check(), Ok(()));
        let gone = PairFacts { nic_mac: MAC, port_mac: None, owner: None };
        assert_eq!(Moment { pair: Some(gone), paths: None, ..moment() }.check(), Ok(()));
    }

    #[test]
    fn a_moment_with_anything_wrong_is_noticed() {
        let other = MacAddress([4; 6]);
        let pair = |port_mac, owner| Some(PairFacts { nic_mac: MAC, port_mac, owner });
        let wrong = [
            (
                Moment { unaccounted: (0, -2), ..moment() },
                Wrong::Count { from_guest: 0, from_peer: -2 },
            ),
            (Moment { queued: QUEUED + 1, ..moment() }, Wrong::Queue { queued: QUEUED + 1 }),
            (Moment { held: UNCONFIRMED + 1, ..moment() }, Wrong::Held { held: UNCONFIRMED + 1 }),
            (
                Moment { pair: pair(Some(other), Some(3)), ..moment() },
                Wrong::PairedMac { nic: MAC, port: other },
            ),
            (
                Moment { pair: pair(Some(MAC), Some(4)), ..moment() },
                Wrong::PairedOwner { owner: Some(4) },
            ),
            (
                Moment { pair: pair(Some(MAC), None), ..moment() },
                Wrong::PairedOwner { owner: None },
            ),
            (Moment { endless: Some("a drain"), ..moment() }, Wrong::Endless { what: "a drain" }),
            (
                Moment { paths: Some((Path::Vf, Path::Synthetic)), ..moment() },
                Wrong::Paths { guest: Path::Vf, host: Path::Synthetic },
            ),
        ];
        for (moment, expected) in wrong {
            assert_eq!(moment.check(), Err(expected));
        }
    }

    #[test]
    fn frames_that_are_missing_or_doubled_without_a_reason_are_noticed() {
        let books = Books { torn: 3, missing_in: 3, resent: 2, twice_out: 2, ..Books::default() };
        assert_eq!(books.check(), Ok(()));
        let wrong = [
            (Books { missing_out: 1, ..books }, Wrong::LostOut { missing: 1, dropped: 0 }),
            (
                Books { missing_in: 4, left: 9, ..books },
                Wrong::LostIn { missing: 4, torn: 3, dropped: 0 },
            ),
            (Books { twice_out: 3, ..books }, Wrong::TwiceOut { twice: 3, resent: 2 }),
            (Books { twice_in: 1, ..books }, Wrong::TwiceIn { twice: 1 }),
            (Books { dropped_out: 1, ..books }, Wrong::Dropped { dropped: 1 }),
            (Books { dropped_in: 2, ..books }, Wrong::Dropped { dropped: 2 }),
        ];
        for (books, expected) in wrong {
            assert_eq!(books.check(), Err(expected));
        }
    }

    #[test]
    fn a_smaller_mtu_excuses_what_was_longer_and_not_a_frame_more() {
        let narrowed = Books { outgrown: 2, ..Books::default() };
        assert_eq!(Books { missing_out: 2, ..narrowed }.check(), Ok(()));
        let lost = Err(Wrong::LostOut { missing: 3, dropped: 0 });
        assert_eq!(Books { missing_out: 3, ..narrowed }.check(), lost);
        assert!(Books { missing_in: 1, ..narrowed }.check().is_err());
    }

    #[test]
    fn a_lie_excuses_what_was_dropped_and_not_a_frame_more() {
        let lied = Books { lied: true, dropped_out: 2, dropped_in: 3, left: 1, ..Books::default() };
        assert_eq!(Books { missing_out: 2, missing_in: 4, ..lied }.check(), Ok(()));
        let out = Books { missing_out: 3, ..lied }.check();
        assert_eq!(out, Err(Wrong::LostOut { missing: 3, dropped: 2 }));
        let back = Books { missing_in: 5, ..lied }.check();
        assert_eq!(back, Err(Wrong::LostIn { missing: 5, torn: 0, dropped: 4 }));
        assert_eq!(Books { twice_in: 1, ..lied }.check(), Err(Wrong::TwiceIn { twice: 1 }));
    }

    #[test]
    fn a_nic_that_was_away_excuses_what_the_switch_dropped_and_nothing_that_is_missing() {
        let away = Books { away: true, dropped_in: 3, ..Books::default() };
        assert_eq!(away.check(), Ok(()));
        let lost = Wrong::LostIn { missing: 1, torn: 0, dropped: 0 };
        assert_eq!(Books { missing_in: 1, ..away }.check(), Err(lost));
    }

    #[test]
    fn memory_that_grows_or_is_not_given_back_is_noticed() {
        assert_eq!(pages_bounded(2 * PAGES, 1), Ok(()));
        let most = 2 * PAGES;
        let many = Wrong::Pages { pages: most + 1, most };
        assert_eq!(pages_bounded(most + 1, 1), Err(many));
        assert_eq!(returned("pages", 4, 4), Ok(()));
        let kept = Wrong::NotReturned { what: "pages", before: 4, after: 5 };
        assert_eq!(returned("pages", 4, 5), Err(kept));
    }
}
