//! What is mended is changed, in the kernel or in a tree, and what is printed to undo it undoes it.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod namespace;

use std::process::Command;

use namespace::{in_namespace, ip};
use netvsc_linux::check::{LinkName, Step};
use netvsc_linux::mend::{MendError, Mender};
use netvsc_linux::netlink::{Connection, Link};

fn link(name: &str) -> Link {
    let links = Connection::open().expect("netlink").links().expect("links");
    links.into_iter().find(|link| link.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn named(name: &str) -> LinkName {
    LinkName { index: link(name).index, name: name.into() }
}

/// Takes a step, and then what undoes it; `holds` is asked after each.
fn there_and_back(step: &Step, holds: impl Fn() -> bool) {
    assert!(!holds(), "{step} is done already");
    Mender::open(None).unwrap().take(step).unwrap_or_else(|error| panic!("{step}: {error}"));
    assert!(holds(), "{step} did nothing");
    let Some(undo) = step.undo() else { return };
    assert!(Command::new("sh").arg("-c").arg(&undo).status().expect("a shell").success(), "{undo}");
    assert!(!holds(), "{undo} did not undo {step}");
}

#[test]
fn steps_change_the_kernel_and_can_be_taken_back() {
    in_namespace("steps_change_the_kernel_and_can_be_taken_back", || {
        ip("link add low0 type veth peer name far");
        ip("link add br0 type bridge");
        ip("link set low0 master br0");
        ip("addr add 192.0.2.1/24 dev low0");
        let vf = named("low0");
        there_and_back(&Step::Mtu { link: vf.clone(), mtu: 1400, before: 1500 }, || {
            link("low0").mtu == Some(1400)
        });
        there_and_back(&Step::Release { link: vf.clone(), master: named("br0") }, || {
            link("low0").master.is_none()
        });
        let address =
            Step::Address { link: vf.clone(), address: "192.0.2.1".parse().unwrap(), prefix: 24 };
        there_and_back(&address, || !ip("addr show dev low0").contains("192.0.2.1"));
        let rename = Step::Rename { link: vf.clone(), to: "enP1s1".into() };
        there_and_back(&rename, || ip("link show").contains("enP1s1"));
        there_and_back(&Step::Up { link: vf.clone(), up: true }, || link("low0").is_up());
        let gone = Step::Mtu { link: LinkName { index: 999, name: "x".into() }, mtu: 1, before: 1 };
        let error = Mender::open(None).unwrap().take(&gone).unwrap_err();
        assert!(matches!(error, MendError::Kernel(_)), "{error}");
    });
}

#[test]
fn a_tree_takes_files_and_values_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let mut mender = Mender::open(Some(root.path())).unwrap();
    let file = |before| Step::File {
        path: "/etc/systemd/network/00.network".into(),
        contents: "[Match]\n".into(),
        before,
    };
    mender.take(&file(None)).unwrap();
    let written =
        std::fs::read_to_string(root.path().join("etc/systemd/network/00.network")).unwrap();
    assert_eq!(written, "[Match]\n");
    assert_eq!(file(None).undo().unwrap(), "rm /etc/systemd/network/00.network");
    let value =
        Step::Value { path: "/sys/mode".into(), value: "1".into(), before: Some("0".into()) };
    assert!(matches!(mender.take(&value), Err(MendError::Write { .. })), "no attribute is made");
    std::fs::create_dir(root.path().join("sys")).unwrap();
    std::fs::write(root.path().join("sys/mode"), "0\n").unwrap();
    mender.take(&value).unwrap();
    assert_eq!(std::fs::read_to_string(root.path().join("sys/mode")).unwrap(), "1\n");
    assert_eq!(value.undo().unwrap(), "echo 0 > /sys/mode");
    let up = Step::Up { link: LinkName { index: 1, name: "lo".into() }, up: false };
    assert!(matches!(mender.take(&up), Err(MendError::NotRunning { .. })));
    let module = Step::Module { name: "mana" };
    assert!(matches!(mender.take(&module), Err(MendError::NotRunning { .. })));
}
