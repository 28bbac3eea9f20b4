//! Settings of interfaces in a network namespace of their own, and what is left of runs that are killed.

use super::*;
use crate::namespace::{in_namespace, ip};

/// An interface whose settings are all others than a hushed one's.
fn make() {
    ip("link add vfg type veth peer name vfh");
    set("vfg", 1, "0");
    assert_eq!(settings("vfg"), ["0", "0"], "nothing to see");
}

fn settings(name: &str) -> [String; SETTINGS.len()] {
    SETTINGS.map(|(family, setting, _)| read(&place(family, name, setting)).expect("it is there"))
}

fn set(name: &str, setting: usize, value: &str) {
    let (family, setting, _) = SETTINGS[setting];
    fs::write(place(family, name, setting), value).expect("root may");
}

fn hushed(root: &Path) -> Hush {
    let mut hush = Hush::new(root);
    hush.over("vfg");
    assert_eq!(settings("vfg"), ["1", "1"]);
    hush
}

/// As the kernel lets go of a process: it has no more descriptors, and nothing is undone.
fn kill(mut hush: Hush) {
    hush.entry = None;
    std::mem::forget(hush);
}

fn records(root: &Path) -> usize {
    fs::read_dir(root.join("run/netvsc/hush")).map_or(0, Iterator::count)
}

#[test]
fn the_next_run_undoes_what_killed_ones_left() {
    in_namespace("remote::hush::tests::the_next_run_undoes_what_killed_ones_left", || {
        let root = tempfile::tempdir().expect("a directory");
        make();
        for _ in 0..3 {
            kill(hushed(root.path()));
            assert_eq!((settings("vfg"), records(root.path())), (["1", "1"].map(Into::into), 1));
        }
        drop(hushed(root.path()));
        assert_eq!((settings("vfg"), records(root.path())), (["0", "0"].map(Into::into), 0));
        // What somebody has set meanwhile is his, also if that was the only thing to undo.
        kill(hushed(root.path()));
        set("vfg", 1, "2");
        kill(hushed(root.path()));
        drop(hushed(root.path()));
        assert_eq!(settings("vfg"), ["0", "2"]);
        set("vfg", 0, "1");
        set("vfg", 1, "1");
        drop(hushed(root.path()));
        assert_eq!((settings("vfg"), records(root.path())), (["1", "1"].map(Into::into), 0));
    });
}

#[test]
fn what_killed_runs_left_is_undone_when_asked_for_and_nothing_of_a_living_one() {
    in_namespace(
        "remote::hush::tests::what_killed_runs_left_is_undone_when_asked_for_and_nothing_of_a_living_one",
        || {
            let root = tempfile::tempdir().expect("a directory");
            let root = root.path();
            unhush(root, false).expect("nothing to do");
            make();
            let hush = hushed(root);
            unhush(root, false).expect("nothing to do");
            assert_eq!((settings("vfg"), records(root)), (["1", "1"].map(Into::into), 1));
            kill(hush);
            ip("link set vfg name enP9s1");
            unhush(root, true).expect("shown");
            assert_eq!((settings("enP9s1"), records(root)), (["1", "1"].map(Into::into), 1));
            unhush(root, false).expect("done");
            assert_eq!((settings("enP9s1"), records(root)), (["0", "0"].map(Into::into), 0));
            // One that is gone needs nothing.
            ip("link set enP9s1 name vfg");
            kill(hushed(root));
            ip("link del vfg");
            unhush(root, false).expect("nothing to do");
            assert_eq!(records(root), 0);
        },
    );
}

#[test]
fn without_a_place_for_records_it_is_hushed_all_the_same() {
    in_namespace(
        "remote::hush::tests::without_a_place_for_records_it_is_hushed_all_the_same",
        || {
            let root = tempfile::tempdir().expect("a directory");
            fs::write(root.path().join("run"), "no folder").expect("a file");
            make();
            drop(hushed(root.path()));
            assert_eq!(settings("vfg"), ["0", "0"]);
        },
    );
}
