//! Which offloads the host's NIC has, and which of them the guest has switched on (PROTOCOL §9.3).

use netvsc::nvsp::Version;
use netvsc::rndis::Status;
use netvsc::rndis::offload::{
    ChecksumSet, Direction, IpOffloads, LargeSendOptions, OffloadCapabilities, OffloadParameters,
};
use netvsc::rndis::packet::ReceiveChecksum;

/// Fewest segments that a large send makes.
pub(super) const LEAST_SEGMENTS: u32 = 2;

/// Which offloads a NIC has. The default has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadPolicy {
    /// TCP checksums and those of IPv4 headers, both ways.
    pub checksum: bool,
    /// UDP checksums, both ways.
    pub udp_checksum: bool,
    /// Checksums also in packets with IPv4 options. With IPv6 extension headers nothing is ever done.
    pub ip_options: bool,
    /// Checksums, and large sends over IPv6, also with TCP options. (Those over IPv4 always: there is no bit for it.)
    pub tcp_options: bool,
    /// Large sends over IPv4 and IPv6, and the most bytes of one; 0 for none.
    pub large_send: u32,
    /// Received segments of one flow are put together, for guests that ask for it.
    pub coalescing: bool,
    /// The checksum fields of what was put together are not filled in, and the guest is told so.
    pub stale_checksums: bool,
}

impl Default for OffloadPolicy {
    fn default() -> Self {
        Self {
            checksum: true,
            udp_checksum: true,
            ip_options: true,
            tcp_options: true,
            large_send: 0xf53c,
            coalescing: true,
            stale_checksums: false,
        }
    }
}

/// Checksums of one kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Checksum {
    transmit: bool,
    receive: bool,
}

impl Checksum {
    /// With what parameters say of it.
    fn after(self, change: Direction) -> Self {
        let (transmit, receive) = change.after((self.transmit, self.receive));
        Self { transmit, receive }
    }
}

/// What the guest has switched on. At first whatever it asks for frame by frame, and nothing of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offloads {
    ipv4: Checksum,
    tcp4: Checksum,
    udp4: Checksum,
    tcp6: Checksum,
    udp6: Checksum,
    large_send4: bool,
    large_send6: bool,
    coalesce4: bool,
    coalesce6: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        let checksum = Checksum { transmit: true, receive: false };
        Self {
            ipv4: checksum,
            tcp4: checksum,
            udp4: checksum,
            tcp6: checksum,
            udp6: checksum,
            large_send4: true,
            large_send6: true,
            coalesce4: false,
            coalesce6: false,
        }
    }
}

impl Offloads {
    /// Takes NDIS_OFFLOAD_PARAMETERS over.
    pub(super) fn set(&mut self, data: &[u8]) -> Result<(), Status> {
        let new = OffloadParameters::decode(data).map_err(|error| {
            tracing::debug!(%error, "offload parameters refused");
            Status::INVALID_DATA
        })?;
        *self = Self {
            ipv4: self.ipv4.after(new.ipv4_header),
            tcp4: self.tcp4.after(new.tcp_ipv4),
            udp4: self.udp4.after(new.udp_ipv4),
            tcp6: self.tcp6.after(new.tcp_ipv6),
            udp6: self.udp6.after(new.udp_ipv6),
            large_send4: new.large_send_ipv4.after(self.large_send4),
            large_send6: new.large_send_ipv6.after(self.large_send6),
            coalesce4: new.coalescing_ipv4.after(self.coalesce4),
            coalesce6: new.coalescing_ipv6.after(self.coalesce6),
        };
        Ok(())
    }

    /// Takes away what the NIC does not have. `coalescing`: whether the guest can take what was put together.
    pub(super) fn within(self, policy: &OffloadPolicy, coalescing: bool) -> Self {
        let only = |had: Checksum, has: bool| Checksum {
            transmit: had.transmit && has,
            receive: had.receive && has,
        };
        let coalescing = coalescing && policy.coalescing;
        Self {
            ipv4: only(self.ipv4, policy.checksum),
            tcp4: only(self.tcp4, policy.checksum),
            udp4: only(self.udp4, policy.udp_checksum),
            tcp6: only(self.tcp6, policy.checksum),
            udp6: only(self.udp6, policy.udp_checksum),
            large_send4: self.large_send4 && policy.large_send > 0,
            large_send6: self.large_send6 && policy.large_send > 0,
            coalesce4: self.coalesce4 && coalescing,
            coalesce6: self.coalesce6 && coalescing,
        }
    }

    /// Everything at once.
    const fn all() -> Self {
        let checksum = Checksum { transmit: true, receive: true };
        Self {
            ipv4: checksum,
            tcp4: checksum,
            udp4: checksum,
            tcp6: checksum,
            udp6: checksum,
            large_send4: true,
            large_send6: true,
            coalesce4: true,
            coalesce6: true,
        }
    }

    /// Whether segments over this IP version are put together.
    pub(super) const fn coalesces(&self, ipv6: bool) -> bool {
        if ipv6 { self.coalesce6 } else { self.coalesce4 }
    }

    /// The same over any.
    pub(super) const fn coalesces_any(&self) -> bool {
        self.coalesce4 || self.coalesce6
    }

    /// The results of checks that the guest wants to have. `ipv6`: of a frame over IPv6.
    pub(super) fn wanted(&self, ipv6: bool) -> ReceiveChecksum {
        use ReceiveChecksum as C;
        let (tcp, udp) = if ipv6 { (self.tcp6, self.udp6) } else { (self.tcp4, self.udp4) };
        [
            (self.ipv4.receive, C::IP_GOOD | C::IP_BAD | C::IP_VALUE_INVALID),
            (tcp.receive, C::TCP_GOOD | C::TCP_BAD | C::TCP_VALUE_INVALID),
            (udp.receive, C::UDP_GOOD | C::UDP_BAD),
        ]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(C::empty(), |all, (_, bits)| all | bits)
    }

    /// Whether any result of a check is wanted.
    pub(super) fn checks(&self) -> bool {
        !self.wanted(false).is_empty() || !self.wanted(true).is_empty()
    }
}

/// What the NIC has, in the form of NDIS_OFFLOAD.
pub(super) fn capabilities(version: Option<Version>, policy: &OffloadPolicy, rsc: bool) -> Vec<u8> {
    config(version, policy, Offloads::all().within(policy, rsc))
}

/// What is switched on, in the form of NDIS_OFFLOAD of the guest's version.
pub(super) fn config(version: Option<Version>, policy: &OffloadPolicy, on: Offloads) -> Vec<u8> {
    let sums = |options: ChecksumSet, kinds: [(bool, ChecksumSet); 3]| {
        let on = kinds.into_iter().filter(|(on, _)| *on);
        let set = on.fold(ChecksumSet::empty(), |set, (_, kind)| set | kind);
        if set.is_empty() { set } else { set | options }
    };
    let (ip, tcp, udp) = (ChecksumSet::IP_HEADER, ChecksumSet::TCP, ChecksumSet::UDP);
    let options = |ip| {
        let mut options = ChecksumSet::empty();
        options.set(ChecksumSet::IP_OPTIONS, ip);
        options.set(ChecksumSet::TCP_OPTIONS, policy.tcp_options);
        options
    };
    let ipv4 = |way: fn(Checksum) -> bool| {
        sums(
            options(policy.ip_options),
            [(way(on.ipv4), ip), (way(on.tcp4), tcp), (way(on.udp4), udp)],
        )
    };
    let ipv6 = |way: fn(Checksum) -> bool| {
        let kinds = [(false, ip), (way(on.tcp6), tcp), (way(on.udp6), udp)];
        sums(options(false), kinds)
    };
    let sends = |on: bool| if on { (policy.large_send, LEAST_SEGMENTS) } else { (0, 0) };
    let version_of = |transmit, receive, sends: (u32, u32), coalescing| IpOffloads {
        transmit,
        receive,
        large_send: sends.0,
        large_send_segments: sends.1,
        coalescing,
    };
    let (transmit, receive) = (|sum: Checksum| sum.transmit, |sum: Checksum| sum.receive);
    let mut large_send_ipv6 = LargeSendOptions::empty();
    large_send_ipv6.set(LargeSendOptions::TCP_OPTIONS, on.large_send6 && policy.tcp_options);
    let offloads = OffloadCapabilities {
        ipv4: version_of(ipv4(transmit), ipv4(receive), sends(on.large_send4), on.coalesce4),
        ipv6: version_of(ipv6(transmit), ipv6(receive), sends(on.large_send6), on.coalesce6),
        large_send_ipv6,
    };
    offloads.encode(version.unwrap_or(Version::V1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters with these bytes set.
    pub(super) fn parameters(set: &[(usize, u8)]) -> Vec<u8> {
        let mut bytes = vec![0x80, 3, 28, 0];
        bytes.resize(28, 0);
        for (at, value) in set {
            bytes[*at] = *value;
        }
        bytes
    }

    #[test]
    fn parameters_change_what_they_name() {
        let mut on = Offloads::default();
        on.set(&parameters(&[(5, 4), (6, 3), (7, 1), (11, 1), (22, 2)])).unwrap();
        assert_eq!(on.tcp4, Checksum { transmit: true, receive: true });
        assert_eq!(on.udp4, Checksum { transmit: false, receive: true });
        assert_eq!(on.tcp6, Checksum { transmit: false, receive: false });
        assert_eq!(on.ipv4, Offloads::default().ipv4);
        assert!(!on.large_send4 && on.large_send6 && on.coalesces(false) && !on.coalesces(true));
        assert!(on.checks() && on.wanted(true) == ReceiveChecksum::empty());
        on.set(&parameters(&[(5, 2), (22, 1)])).unwrap();
        assert_eq!(on.tcp4, Checksum { transmit: true, receive: false });
        assert!(!on.coalesces(false));
    }

    #[test]
    fn parameters_of_old_guests_end_before_coalescing() {
        let mut old = parameters(&[(5, 4), (22, 2)]);
        old.truncate(22);
        old[2] = 22;
        let mut on = Offloads::default();
        on.set(&old).unwrap();
        assert!(on.tcp4.receive && !on.coalesces(false));
    }

    #[test]
    fn parameters_that_make_no_sense_change_nothing() {
        let good = parameters(&[(5, 4)]);
        for (at, value) in [(0, 0x81), (2, 19), (4, 5), (8, 9), (11, 3), (23, 3)] {
            let mut wrong = good.clone();
            wrong[at] = value;
            let mut on = Offloads::default();
            assert_eq!(on.set(&wrong), Err(Status::INVALID_DATA), "byte {at} = {value}");
            assert_eq!(on, Offloads::default());
        }
        for len in 0..20 {
            assert!(Offloads::default().set(&good[..len]).is_err());
        }
    }

    #[test]
    fn capabilities_have_the_form_of_the_version() {
        for (version, revision, size) in [
            (Version::V6_1, 3, 156),
            (Version::V5, 3, 156),
            (Version::V4, 2, 144),
            (Version::V2, 1, 112),
            (Version::V1, 1, 112),
        ] {
            let bytes = capabilities(Some(version), &OffloadPolicy::default(), true);
            assert_eq!((bytes[1], usize::from(bytes[2]), bytes.len()), (revision, size, size));
        }
    }

    #[test]
    fn only_what_is_there_is_offered() {
        let word =
            |bytes: &[u8], at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        let all = capabilities(Some(Version::V6_1), &OffloadPolicy::default(), true);
        assert_eq!([4, 8, 12, 16].map(|at| word(&all, at)), [2, 0x155, 2, 0x155]);
        assert_eq!([20, 24, 28, 32].map(|at| word(&all, at)), [2, 0x54, 2, 0x54]);
        assert_eq!([80, 84, 88, 92, 104].map(|at| word(&all, at)), [2, 0xf53c, 2, 2, 4]);
        assert_eq!(all[144..146], [1, 1]);
        let none = OffloadPolicy {
            checksum: false,
            udp_checksum: false,
            ip_options: false,
            tcp_options: false,
            large_send: 0,
            coalescing: false,
            stale_checksums: false,
        };
        let nothing = capabilities(Some(Version::V6_1), &none, true);
        assert!(nothing[4..].iter().all(|byte| *byte == 0));
        let tcp = OffloadPolicy { udp_checksum: false, ..OffloadPolicy::default() };
        assert_eq!(word(&capabilities(Some(Version::V5), &tcp, false), 8), 0x115);
        let bare =
            OffloadPolicy { ip_options: false, tcp_options: false, ..OffloadPolicy::default() };
        let bare = capabilities(Some(Version::V6_1), &bare, true);
        assert_eq!([8, 16, 24, 32, 104].map(|at| word(&bare, at)), [0x150, 0x150, 0x50, 0x50, 0]);
    }
}
