//! The kernel's own word against what `ip` makes of it, in network namespaces.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use namespace::{Neighbour, in_namespace, ip};
use netvsc_linux::netlink::{Connection, Event, Link, Monitor, NetlinkError, Reply, Table, Topics};
use serde_json::Value;

fn json(arguments: &str) -> Vec<Value> {
    let text = ip(&format!("-d -j {arguments}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments}: {error}: {text}"))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Every interface with a name of its own: pairs, a bridge with a port, a VLAN, a TAP, one renamed, one with other names.
fn build() {
    for line in [
        "link add va type veth peer name vb",
        "link add br0 type bridge",
        "link set va master br0",
        "tuntap add dev tap0 mode tap",
        "link add old type veth peer name other",
        "link set dev old name renamed",
        "link property add dev renamed altname the-other-name-of-this-interface",
        "link property add dev renamed altname enP37498s1296119428np0",
        "link set dev vb address 02:00:00:00:00:07 mtu 1400 up",
        "link set va up",
        "link set br0 up",
        "addr add 192.0.2.1/24 dev vb",
        "addr add 2001:db8::1/64 dev vb nodad",
        "addr add 192.0.2.129 peer 192.0.2.130/32 dev br0",
        "route add 198.51.100.0/24 via 192.0.2.9 metric 77",
        "route add default via 192.0.2.254",
        "neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev vb nud permanent",
    ] {
        ip(line);
    }
    // A kernel without VLANs has another kind of link that sits on one.
    if !works("link add link vb name vb.7 type vlan id 7") {
        eprintln!("skipped: netlink: a VLAN: this kernel makes none; a macvlan stands in for it");
        ip("link add link vb name vb.7 type macvlan");
    }
}

fn works(line: &str) -> bool {
    let output = std::process::Command::new("ip").args(line.split(' ')).output();
    output.expect("ip is there").status.success()
}

/// Compares what the kernel says with what `ip` says, at a moment when nothing changes: states follow carriers later.
fn compare(kernel: &mut Connection) -> Vec<Link> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let before = kernel.links().expect("links");
        let theirs = json("link show");
        let after = kernel.links().expect("links");
        if before == after {
            compare_with(&after, &theirs);
            return after;
        }
        assert!(Instant::now() < end, "links never come to rest");
    }
}

fn compare_with(links: &[Link], theirs: &[Value]) {
    assert_eq!(links.len(), theirs.len());
    let names: BTreeMap<u32, &str> =
        links.iter().map(|link| (link.index, link.name.as_str())).collect();
    for (ours, theirs) in links.iter().zip(theirs) {
        let name = &ours.name;
        assert_eq!(Some(name.clone()), text(&theirs["ifname"]));
        assert_eq!(u64::from(ours.index), theirs["ifindex"], "{name}");
        assert_eq!(ours.mtu.map(u64::from), theirs["mtu"].as_u64(), "{name}");
        assert_eq!(ours.min_mtu.map(u64::from), theirs["min_mtu"].as_u64(), "{name}");
        assert_eq!(ours.max_mtu.unwrap_or(0), theirs["max_mtu"].as_u64().unwrap() as u32, "{name}");
        assert_eq!(ours.operstate, text(&theirs["operstate"]), "{name}");
        assert_eq!(ours.qdisc, text(&theirs["qdisc"]), "{name}");
        assert_eq!(ours.mac.map(|mac| mac.to_string()), text(&theirs["address"]), "{name}");
        let master = ours.master.map(|index| names[&index].to_owned());
        assert_eq!(master, text(&theirs["master"]), "{name}");
        // What is below is in another namespace, or is named.
        match ours.peer_namespace {
            Some(_) => assert_eq!(ours.lower.map(u64::from), theirs["link_index"].as_u64()),
            None => {
                let lower = ours.lower.and_then(|index| names.get(&index));
                assert_eq!(lower.map(|name| (*name).to_owned()), text(&theirs["link"]), "{name}");
            }
        }
        let altnames = theirs["altnames"].as_array().cloned().unwrap_or_default();
        let altnames: Vec<_> = altnames.iter().filter_map(text).collect();
        assert_eq!(ours.altnames, altnames, "{name}");
        assert_eq!(ours.made, text(&theirs["linkinfo"]["info_kind"]), "{name}");
        let flags: Vec<_> = theirs["flags"].as_array().unwrap().iter().filter_map(text).collect();
        assert_eq!(ours.is_up(), flags.contains(&"UP".to_owned()), "{name}");
        assert_eq!(ours.flags & 0x1_0000 != 0, flags.contains(&"LOWER_UP".to_owned()), "{name}");
    }
}

#[test]
fn links_are_what_ip_prints() {
    in_namespace("links_are_what_ip_prints", || {
        build();
        let mut kernel = Connection::open().unwrap();
        let links = compare(&mut kernel);
        let of = |links: &[Link], name| {
            links.iter().find(|link| link.name == name).cloned().expect("it was made")
        };
        let made = of(&links, "vb.7").made;
        assert!(["vlan", "macvlan"].map(|kind| Some(kind.to_owned())).contains(&made));
        assert_eq!(of(&links, "renamed").altnames.len(), 2);
        assert_eq!(of(&links, "tap0").made.as_deref(), Some("tun"));
        // The same bytes, stored and read again, say the same.
        let reply = kernel.dump(Table::Links).unwrap();
        let again = Reply::from_bytes(reply.as_bytes().to_vec()).links().0;
        assert_eq!(again, reply.links().0);
        assert_eq!(again.len(), links.len());
    });
}

#[test]
fn one_link_is_asked_for_by_its_number() {
    in_namespace("one_link_is_asked_for_by_its_number", || {
        build();
        let mut kernel = Connection::open().unwrap();
        let links = kernel.links().unwrap();
        for link in &links {
            assert_eq!(kernel.link(link.index).unwrap().as_ref(), Some(link));
        }
        assert_eq!(kernel.link(987_654).unwrap(), None);
        // The answer to one question does not get into the next.
        assert_eq!(kernel.links().unwrap(), links);
    });
}

#[test]
fn a_link_that_moved_is_found_where_it_is() {
    in_namespace("a_link_that_moved_is_found_where_it_is", || {
        build();
        let neighbour = Neighbour::new();
        ip(&format!("link set dev other netns {}", neighbour.pid()));
        let mut kernel = Connection::open().unwrap();
        let here = compare(&mut kernel);
        assert!(here.iter().all(|link| link.name != "other"));
        let renamed = here.iter().find(|link| link.name == "renamed").unwrap();
        assert!(renamed.peer_namespace.is_some());
        let namespace = format!("/proc/{}/ns/net", neighbour.pid());
        let there = Connection::open_in(Path::new(&namespace)).unwrap().links().unwrap();
        let names: Vec<_> = there.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["lo", "other"]);
        // This thread stayed where it was.
        compare(&mut Connection::open().unwrap());
    });
}

#[test]
fn a_namespace_that_is_none_is_named() {
    let error = Connection::open_in(Path::new("/dev/null")).unwrap_err();
    assert!(matches!(error, NetlinkError::Namespace { .. }));
    assert!(error.to_string().contains("/dev/null"), "{error}");
    assert!(Connection::open_in(Path::new("/no/such")).is_err());
}

#[test]
fn addresses_routes_and_neighbours_are_what_ip_prints() {
    in_namespace("addresses_routes_and_neighbours_are_what_ip_prints", || {
        build();
        let mut kernel = Connection::open().unwrap();
        let mut ours: Vec<_> = kernel
            .addresses()
            .unwrap()
            .iter()
            .map(|address| (address.index, address.address.to_string(), address.prefix))
            .collect();
        let mut theirs: Vec<_> = json("addr show")
            .iter()
            .flat_map(|link| {
                let index = link["ifindex"].as_u64().unwrap() as u32;
                let of = |info: &Value| {
                    let prefix = info["prefixlen"].as_u64().unwrap() as u8;
                    (index, text(&info["local"]).unwrap(), prefix)
                };
                link["addr_info"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
            })
            .collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
        assert!(ours.len() >= 3);

        let routes = kernel.routes().unwrap();
        let main: Vec<_> = routes.iter().filter(|r| r.table == 254 && !r.v6).collect();
        let theirs = json("route show table main");
        assert_eq!(main.len(), theirs.len());
        let default = main.iter().find(|route| route.is_default()).unwrap();
        assert_eq!(default.gateway, Some("192.0.2.254".parse().unwrap()));
        let far = main.iter().find(|route| route.metric == 77).unwrap();
        assert_eq!(far.destination, Some("198.51.100.0".parse().unwrap()));
        assert_eq!((far.prefix, far.gateway), (24, Some("192.0.2.9".parse().unwrap())));

        let neighbours = kernel.neighbours().unwrap();
        let known = neighbours.iter().find(|n| n.address.to_string() == "192.0.2.9").unwrap();
        assert!(known.asked);
    });
}

#[test]
fn changes_take_effect_and_refusals_are_named() {
    in_namespace("changes_take_effect_and_refusals_are_named", || {
        build();
        let mut kernel = Connection::open().unwrap();
        let index = |kernel: &mut Connection, name: &str| {
            kernel.links().unwrap().iter().find(|link| link.name == name).unwrap().index
        };
        let vb = index(&mut kernel, "vb");
        let va = index(&mut kernel, "va");
        kernel.set_mtu(vb, 1300).unwrap();
        kernel.set_master(va, 0).unwrap();
        kernel.set_up(va, false).unwrap();
        kernel.rename(va, "veth-a").unwrap();
        let addresses = kernel.addresses().unwrap();
        let address = addresses.iter().find(|a| a.address.to_string() == "192.0.2.1").unwrap();
        kernel.remove_address(address).unwrap();
        let links = compare(&mut kernel);
        let changed = links.iter().find(|link| link.index == va).unwrap();
        assert_eq!(
            (changed.name.as_str(), changed.master, changed.is_up()),
            ("veth-a", None, false)
        );
        assert_eq!(links.iter().find(|link| link.index == vb).unwrap().mtu, Some(1300));
        assert!(!ip("addr show dev vb").contains("192.0.2.1/"));
        let error = kernel.set_mtu(9999, 1500).unwrap_err();
        assert!(error.to_string().contains("set the MTU"), "{error}");
        assert!(matches!(error, NetlinkError::Refused { .. }));
        // The connection is good for more.
        assert!(kernel.links().is_ok());
    });
}

/// Everything that happens until `enough` says so.
fn until(monitor: &mut Monitor, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while !enough(&events) {
        assert!(Instant::now() < end, "it never came; so far {events:?}");
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            monitor.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&second)).unwrap();
        events.extend(monitor.poll().unwrap());
    }
    events
}

#[test]
fn what_happens_is_heard_in_order() {
    in_namespace("what_happens_is_heard_in_order", || {
        let topics = Topics::LINKS | Topics::ADDRESSES | Topics::ROUTES;
        let mut monitor = Monitor::open(topics).unwrap();
        assert_eq!(monitor.poll().unwrap(), []);
        ip("link add va type veth peer name vb");
        ip("link set va up");
        ip("addr add 192.0.2.1/24 dev va");
        ip("link set va down");
        ip("link set va name vc");
        ip("link del vc");
        let gone = |events: &[Event]| {
            events.iter().any(|e| matches!(e, Event::LinkGone(link) if link.name == "vc"))
        };
        let events = until(&mut monitor, gone);
        let at = |fits: &dyn Fn(&Event) -> bool| events.iter().position(fits).expect("it happened");
        let came = at(&|e| matches!(e, Event::Link(link) if link.name == "va" && !link.is_up()));
        let up = at(&|e| matches!(e, Event::Link(link) if link.name == "va" && link.is_up()));
        let addressed =
            at(&|e| matches!(e, Event::Address(a) if a.address.to_string() == "192.0.2.1"));
        let renamed = at(&|e| matches!(e, Event::Link(link) if link.name == "vc"));
        assert!(came < up && up < addressed && addressed < renamed, "{events:#?}");
        assert!(events.iter().any(|event| matches!(event, Event::AddressGone(_))));
    });
}

#[test]
fn an_ear_that_is_full_says_that_it_missed_something() {
    in_namespace("an_ear_that_is_full_says_that_it_missed_something", || {
        ip("link add va type veth peer name vb");
        let mut monitor = Monitor::open(Topics::LINKS).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&monitor, 1).unwrap();
        let mut kernel = Connection::open().unwrap();
        let index = kernel.links().unwrap().iter().find(|l| l.name == "va").unwrap().index;
        for mtu in 1000..1100 {
            kernel.set_mtu(index, mtu).unwrap();
        }
        let events = monitor.poll().unwrap();
        assert!(events.contains(&Event::Lost), "{} events", events.len());
        // It hears again, and what it missed can be asked for.
        kernel.set_mtu(index, 1234).unwrap();
        let heard = |events: &[Event]| {
            events.iter().any(|e| matches!(e, Event::Link(link) if link.mtu == Some(1234)))
        };
        until(&mut monitor, heard);
    });
}
