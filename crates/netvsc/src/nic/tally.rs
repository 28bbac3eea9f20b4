//! What the host answered, counted by what it was.
//!
//! A host may answer with any number. The ones that mean something have a counter each, all others share one, beside which
//! the last of them is kept: so a strange host can be told from its counters, and cannot make them grow.

use crate::{nvsp, rndis};

/// Counters of an open enumeration: one for each number that is named, and one for the others.
macro_rules! tally {
    (
        $(#[$meta:meta])*
        $name:ident of $kind:ty { $($(#[$field_meta:meta])* $field:ident = $constant:ident,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: u64,)*
            /// Any other.
            pub other: u64,
            /// The last of those others.
            pub last_other: Option<$kind>,
        }

        impl $name {
            /// One more.
            pub(super) fn count(&mut self, what: $kind) {
                let counter = match what {
                    $(<$kind>::$constant => &mut self.$field,)*
                    other => {
                        self.last_other = Some(other);
                        &mut self.other
                    }
                };
                *counter = counter.saturating_add(1);
            }

            /// Each of them with its name.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)* ("other", self.other)].into_iter()
            }

            /// All of them.
            #[must_use]
            pub fn total(&self) -> u64 {
                self.counts().map(|(_, count)| count).fold(0, u64::saturating_add)
            }
        }
    };
}

tally! {
    /// Completions of NVSP messages that say anything but success (PROTOCOL §7.2), by status.
    NvspStatuses of nvsp::Status {
        /// Nothing yet, which is also how OpenVMM refuses a version.
        none = NONE,
        /// Not done.
        failure = FAILURE,
        /// The version is too new.
        too_new = TOO_NEW,
        /// The version is too old.
        too_old = TOO_OLD,
        /// The RNDIS message makes no sense to the host.
        invalid_rndis_packet = INVALID_RNDIS_PACKET,
        /// Not now.
        busy = BUSY,
        /// The version is not supported.
        unsupported_version = UNSUPPORTED_VERSION,
    }
}

tally! {
    /// Replies of RNDIS that say anything but success (PROTOCOL §9.1), by status.
    RndisStatuses of rndis::Status {
        /// To be done, without a word about when.
        pending = PENDING,
        /// Not done.
        failure = FAILURE,
        /// The host has no memory or the like.
        resources = RESOURCES,
        /// Not a thing that the host does.
        not_supported = NOT_SUPPORTED,
        /// Not a version that the host knows.
        bad_version = BAD_VERSION,
        /// The value makes no sense to the host.
        invalid_data = INVALID_DATA,
        /// The value is too short for the host.
        buffer_too_short = BUFFER_TOO_SHORT,
        /// No object that the host knows.
        invalid_oid = INVALID_OID,
    }
}

tally! {
    /// What the host said unasked by RNDIS (PROTOCOL §9.6), by status. Others are passed over.
    Indications of rndis::Status {
        /// The link is up.
        connected = MEDIA_CONNECT,
        /// The link is down.
        disconnected = MEDIA_DISCONNECT,
        /// The link has another speed.
        speed = LINK_SPEED_CHANGE,
        /// There is another network behind the link.
        network = NETWORK_CHANGE,
        /// These offloads are in use now.
        offloads = OFFLOAD_CURRENT_CONFIG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_own_counter_and_the_unknown_share_one() {
        let mut counted = RndisStatuses::default();
        let all = [
            rndis::Status::PENDING,
            rndis::Status::FAILURE,
            rndis::Status::RESOURCES,
            rndis::Status::NOT_SUPPORTED,
            rndis::Status::BAD_VERSION,
            rndis::Status::INVALID_DATA,
            rndis::Status::BUFFER_TOO_SHORT,
            rndis::Status::INVALID_OID,
        ];
        for (times, status) in (1..).zip(all) {
            (0..times).for_each(|_| counted.count(status));
        }
        counted.count(rndis::Status(0xc000_0022));
        counted.count(rndis::Status(0xdead_beef));
        let expected = RndisStatuses {
            pending: 1,
            failure: 2,
            resources: 3,
            not_supported: 4,
            bad_version: 5,
            invalid_data: 6,
            buffer_too_short: 7,
            invalid_oid: 8,
            other: 2,
            last_other: Some(rndis::Status(0xdead_beef)),
        };
        assert_eq!((counted, counted.total()), (expected, 38));
    }

    #[test]
    fn counters_do_not_run_over() {
        let mut counted = NvspStatuses { busy: u64::MAX, ..NvspStatuses::default() };
        counted.count(nvsp::Status::BUSY);
        counted.count(nvsp::Status::FAILURE);
        assert_eq!((counted.busy, counted.failure), (u64::MAX, 1));
        assert_eq!(counted.total(), u64::MAX);
    }
}
