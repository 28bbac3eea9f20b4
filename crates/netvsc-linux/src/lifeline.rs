//! What keeps an operator connected to this machine: default routes, and the session in which he works.
//!
//! Whoever is about to take a NIC away asks first.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;

use crate::netlink::{Address, Connection, Link, NetlinkError, Route};

/// How many processes up the session is looked for.
const ANCESTORS: usize = 32;
/// How much of a process's environment is read, in bytes.
const ENVIRONMENT: u64 = 256 << 10;
/// The variable in which sshd says who talks with whom: the peer's address and port, then ours.
const SSH: &str = "SSH_CONNECTION";

/// What would be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A default route leads through the interface.
    DefaultRoute {
        /// That of IPv6, otherwise that of IPv4.
        v6: bool,
    },
    /// The address to which this session's other end is connected.
    Session {
        /// The address, one of this machine's.
        address: IpAddr,
    },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute { v6: false } => f.write_str("the default route of IPv4"),
            Self::DefaultRoute { v6: true } => f.write_str("the default route of IPv6"),
            Self::Session { address } => write!(f, "this session, which came in at {address}"),
        }
    }
}

/// Where default routes and the session go.
#[derive(Clone, Debug, Default)]
pub struct Lifeline {
    links: Vec<Link>,
    routes: Vec<Route>,
    addresses: Vec<Address>,
    session: Option<IpAddr>,
}

impl Lifeline {
    /// That of this process, in its network namespace.
    ///
    /// # Errors
    /// What the kernel says about links, routes or addresses.
    pub fn read() -> Result<Self, NetlinkError> {
        let mut kernel = Connection::open()?;
        let links = kernel.links()?;
        let routes = kernel.routes()?;
        Ok(Self::of(links, routes, kernel.addresses()?, session()))
    }

    /// That of a machine with these links, routes and addresses, and with a session that came in at the address `session`.
    #[must_use]
    pub fn of(
        links: Vec<Link>,
        routes: Vec<Route>,
        addresses: Vec<Address>,
        session: Option<IpAddr>,
    ) -> Self {
        Self { links, routes, addresses, session }
    }

    /// What is cut off if the interface with this number goes: what goes through itself, through those that it belongs to (its bond
    /// or bridge), and through those that are made from it (its VLANs).
    #[must_use]
    pub fn needs(&self, index: u32) -> BTreeSet<Need> {
        let above = self.above(index);
        let mut needs = BTreeSet::new();
        for route in self.routes.iter().filter(|route| route.is_default()) {
            if route.index.is_some_and(|index| above.contains(&index)) {
                needs.insert(Need::DefaultRoute { v6: route.v6 });
            }
        }
        let ours = |address: &&Address| above.contains(&address.index);
        let session = self.session.filter(|session| {
            self.addresses.iter().filter(ours).any(|address| address.address == *session)
        });
        needs.extend(session.map(|address| Need::Session { address }));
        needs
    }

    /// An interface and all that stand on it.
    fn above(&self, index: u32) -> BTreeSet<u32> {
        let mut found = BTreeSet::from([index]);
        let mut fresh = vec![index];
        while let Some(below) = fresh.pop() {
            let master = self.links.iter().find(|link| link.index == below);
            let master = master.and_then(|link| link.master);
            // The other end of a veth pair names this end, too; it is no harm to count it.
            let made = self
                .links
                .iter()
                .filter(|link| link.lower == Some(below) && link.peer_namespace.is_none());
            for index in master.into_iter().chain(made.map(|link| link.index)) {
                if found.insert(index) {
                    fresh.push(index);
                }
            }
        }
        found
    }
}

/// The address at which the session came in, if it did. `sudo` takes the variable away, so the processes above are asked, too.
fn session() -> Option<IpAddr> {
    if let Some(address) = std::env::var(SSH).ok().and_then(|text| parse_session(&text)) {
        return Some(address);
    }
    let mut process = "self".to_owned();
    for _ in 0..ANCESTORS {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name may hold anything, brackets too; what follows the last one does not.
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.to_owned();
        if parent == "0" {
            return None;
        }
        let mut environment = Vec::new();
        if let Ok(file) = File::open(format!("/proc/{parent}/environ"))
            && file.take(ENVIRONMENT).read_to_end(&mut environment).is_ok()
            && let Some(address) = in_environment(&environment)
        {
            return Some(address);
        }
        process = parent;
    }
    None
}

fn in_environment(bytes: &[u8]) -> Option<IpAddr> {
    bytes.split(|byte| *byte == 0).find_map(|variable| {
        let text = std::str::from_utf8(variable).ok()?;
        parse_session(text.strip_prefix(SSH)?.strip_prefix('=')?)
    })
}

fn parse_session(text: &str) -> Option<IpAddr> {
    // A link-local address comes with its interface behind a percent sign.
    let address = text.split_ascii_whitespace().nth(2)?.split('%').next()?;
    let address: IpAddr = address.parse().ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, master: Option<u32>, lower: Option<u32>) -> Link {
        Link { index, master, lower, ..Link::default() }
    }

    fn default_route(index: u32, v6: bool) -> Route {
        let (destination, gateway) = (None, None);
        Route {
            index: Some(index),
            destination,
            prefix: 0,
            v6,
            gateway,
            table: 254,
            metric: 0,
            unicast: true,
        }
    }

    fn address(index: u32, address: &str) -> Address {
        Address { index, address: address.parse().unwrap(), prefix: 24, link_local: false }
    }

    #[test]
    fn a_route_through_the_interface_or_what_stands_on_it_counts() {
        // 2 belongs to the bond 3, on which the VLAN 4 is; 5 is somebody else.
        let links = vec![
            link(2, Some(3), None),
            link(3, None, None),
            link(4, None, Some(3)),
            link(5, None, None),
        ];
        let routes = vec![default_route(4, false), default_route(5, true)];
        let lifeline = Lifeline::of(links, routes, Vec::new(), None);
        let needs = |index| lifeline.needs(index).into_iter().collect::<Vec<_>>();
        for index in [2, 3, 4] {
            assert_eq!(needs(index), [Need::DefaultRoute { v6: false }], "{index}");
        }
        assert_eq!(needs(5), [Need::DefaultRoute { v6: true }]);
        assert_eq!(needs(6), []);
    }

    #[test]
    fn the_session_counts_where_its_address_is() {
        let addresses = vec![address(2, "192.0.2.7"), address(3, "198.51.100.1")];
        let session = parse_session("203.0.113.9 51234 192.0.2.7 22");
        let lifeline = Lifeline::of(vec![link(2, None, None)], Vec::new(), addresses, session);
        let session = "192.0.2.7".parse().unwrap();
        assert_eq!(lifeline.needs(2), BTreeSet::from([Need::Session { address: session }]));
        assert!(lifeline.needs(3).is_empty());
    }

    #[test]
    fn routes_that_are_no_default_do_not_count() {
        let mut refusing = default_route(2, false);
        refusing.unicast = false;
        let mut near = default_route(2, false);
        near.prefix = 24;
        let lifeline = Lifeline::of(vec![link(2, None, None)], vec![refusing, near], vec![], None);
        assert!(lifeline.needs(2).is_empty());
    }

    #[test]
    fn links_in_a_ring_are_looked_at_once() {
        let links = vec![link(2, None, Some(3)), link(3, None, Some(2))];
        let lifeline = Lifeline::of(links, vec![default_route(3, false)], Vec::new(), None);
        assert_eq!(lifeline.needs(2).len(), 1);
    }

    #[test]
    fn what_sshd_says_is_understood_and_nothing_else() {
        let of = |text: &str| parse_session(text).map(|address| address.to_string());
        assert_eq!(of("2001:db8::1 9 2001:db8::2 22").as_deref(), Some("2001:db8::2"));
        assert_eq!(of("fe80::1%eth0 9 fe80::2%eth0 22").as_deref(), Some("fe80::2"));
        // A dual-stack socket says so of IPv4.
        assert_eq!(of("::ffff:192.0.2.1 9 ::ffff:192.0.2.2 22").as_deref(), Some("192.0.2.2"));
        assert_eq!(of(""), None);
        assert_eq!(of("a b c d"), None);
        let environment = b"HOME=/\0SSH_CONNECTION=192.0.2.1 9 192.0.2.2 22\0\xff";
        assert_eq!(in_environment(environment), Some("192.0.2.2".parse().unwrap()));
        assert_eq!(in_environment(b"XSSH_CONNECTION=192.0.2.1 9 192.0.2.2 22"), None);
    }
}
