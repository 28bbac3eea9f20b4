//! What the kernel says of interfaces faster than it is heard, in a network namespace of its own.

use std::process::{Command, Stdio};

use super::*;
use crate::namespace::{in_namespace, ip};

const MAC: MacAddress = MacAddress([0x02, 0x15, 0x5d, 0, 0, 7]);
const BUS: Guid = Guid::nil();

fn link() -> KernelLink {
    link_by(VfDriver::Packet)
}

fn link_by(driver: VfDriver) -> KernelLink {
    let interface = VfInterface { name: "vfg".into(), driver };
    // Nobody kills these runs, so nobody reads what they write down.
    let root = tempfile::tempdir().expect("a directory");
    KernelLink::new(&interface, root.path()).expect("netlink")
}

/// More news than any socket holds: what happens afterwards is lost to who has not listened.
fn drown() {
    use std::io::Write;
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = ip.stdin.take().unwrap();
    for mtu in (1000..1500).cycle().take(4000) {
        writeln!(lines, "link set lo mtu {mtu}").unwrap();
    }
    drop(lines);
    assert!(ip.wait().unwrap().success());
}

/// What happened to the interface, in order.
fn news(link: &mut KernelLink) -> Vec<Change> {
    let mut changes = link.look(Instant::ZERO);
    changes.retain(|change| *change != Change::Work);
    changes
}

#[test]
fn an_interface_that_comes_unheard_is_found() {
    in_namespace("remote::port::tests::an_interface_that_comes_unheard_is_found", || {
        let mut link = link();
        drown();
        ip("link add vfg type veth peer name vfh");
        assert_eq!(news(&mut link).last(), Some(&Change::There));
        // That it went was heard late, and that it is back not at all.
        ip("link del vfg");
        drown();
        ip("link add vfg type veth peer name vfh");
        let changes = news(&mut link);
        assert!(changes.contains(&Change::Left), "{changes:?}");
        assert_eq!(changes.last(), Some(&Change::There), "{changes:?}");
        drown();
        ip("link del vfg");
        assert_eq!(news(&mut link).last(), Some(&Change::Left));
    });
}

#[test]
fn a_port_whose_interface_goes_unheard_is_gone() {
    in_namespace("remote::port::tests::a_port_whose_interface_goes_unheard_is_gone", || {
        let mut link = link();
        ip("link add vfg type veth peer name vfh");
        ip("link set vfh up");
        let _port = link.open(BUS, MAC).expect("an interface");
        news(&mut link);
        assert!(link.is_open());
        // Nothing is lost of the port but news.
        drown();
        assert_eq!(news(&mut link), []);
        assert!(link.is_open());
        let losses = link.losses;
        drown();
        ip("link set vfh down");
        assert_eq!(news(&mut link), []);
        assert_eq!(link.losses, losses + 1, "its carrier");
        drown();
        ip("link del vfg");
        ip("link add vfg type veth peer name vfh");
        assert_eq!(news(&mut link), [Change::Gone, Change::There]);
        assert!(!link.is_open());
    });
}

#[test]
fn af_xdp_is_tried_once_with_a_driver_that_cannot_do_without_copies() {
    in_namespace(
        "remote::port::tests::af_xdp_is_tried_once_with_a_driver_that_cannot_do_without_copies",
        || {
            let mut link = link_by(VfDriver::Auto);
            let tries = |link: &mut KernelLink| {
                drop(link.open(BUS, MAC).expect("an interface"));
                link.forget(BUS);
                let notes = link.take_notes();
                notes.iter().filter(|note| note.contains("could not do without copies")).count()
            };
            ip("link add vfg type veth peer name vfh");
            assert_eq!(tries(&mut link), 1);
            assert_eq!(tries(&mut link), 0, "the same again");
            // Another interface of that name may have another driver.
            ip("link del vfg");
            ip("link add vfg type veth peer name vfh");
            assert_eq!(tries(&mut link), 1);
        },
    );
}
