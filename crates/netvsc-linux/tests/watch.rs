//! What is made of events, with a clock that is stepped.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;

use std::time::Duration;

use guest::{Guest, MLX5, kinds};
use netvsc_linux::inventory::{Depth, LogEvent, LogLine, Snapshot, Subject, take};
use netvsc_linux::netlink::Link;
use netvsc_linux::watch::{News, Told, Watch, history, moment};
use vmbus::Serial;

const MAC: &str = "7c:1e:52:25:55:d2";

fn read(guest: &Guest) -> Snapshot {
    take(Some(guest.root()), Depth::Pairs).expect("a root")
}

/// A guest, who watches it, and a clock that starts with the guest's uptime.
struct Scene {
    guest: Guest,
    pair: kinds::Pair,
    watch: Watch,
    millis: u64,
}

impl Scene {
    fn new() -> Self {
        let mut guest = Guest::new();
        let pair = kinds::one(&mut guest);
        let millis = 7_200_000;
        let watch = Watch::new(read(&guest), moment(Duration::from_millis(millis)));
        Self { guest, pair, watch, millis }
    }

    fn pass(&mut self, millis: u64) {
        self.millis += millis;
    }

    fn tell(&mut self, news: News) -> Told {
        self.watch.tell(news)
    }

    fn say(&mut self, event: LogEvent) {
        let subject = Subject::Vmbus(self.pair.nic.guid.parse().expect("a GUID"));
        let at = Duration::from_millis(self.millis);
        let line = LogLine { at, subject, event, text: String::new() };
        assert_eq!(self.tell(News::Said(line)), Told::Taken);
    }

    /// What was made of it, in words.
    fn changes(&mut self) -> Vec<String> {
        self.watch.settle(moment(Duration::from_millis(self.millis)));
        self.words()
    }

    fn words(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.watch.poll_change())
            .map(|change| match change.subject {
                Some(subject) => format!("{}: {}", subject.name, change.what),
                None => change.what.to_string(),
            })
            .collect()
    }

    fn look_again(&mut self, lost: Option<&'static str>) -> Vec<String> {
        let now = moment(Duration::from_millis(self.millis));
        self.watch.replace(read(&self.guest), lost, now);
        self.words()
    }

    /// Takes the VF out of the tree.
    fn take_vf(&mut self) {
        let (guest, pair) = (&self.guest, &self.pair);
        guest.remove(&format!("sys/class/net/{}", pair.port.name));
        guest.remove(&format!("{}/lower_{}", pair.nic.net, pair.port.name));
        guest.remove(&format!("sys/bus/vmbus/devices/{}", pair.function.bus));
        guest.remove(&format!("sys/bus/pci/devices/{}", pair.function.address));
        let bus = pair.function.path.rsplit_once("/pci").expect("below a bus").0;
        guest.remove(bus);
        let slot = std::fs::read_dir(guest.path("sys/bus/pci/slots")).expect("a folder").next();
        let slot = slot.expect("a slot").expect("an entry").file_name();
        guest.remove(&format!("sys/bus/pci/slots/{}", slot.to_string_lossy()));
    }

    /// Puts one in, and joins it.
    fn give_vf(&mut self, serial: &str) {
        let bus = self.pair.function.bus.clone();
        self.pair.function = self.guest.function(&bus, serial, &MLX5);
        self.pair.port = self.guest.port(&self.pair.function, "enP37498s1", MAC, 0);
        self.guest.join(&self.pair.nic, &self.pair.port);
    }

    /// A link as netlink tells it.
    fn link(&self, index: u32, name: &str) -> Link {
        let flags = 0x1003;
        Link { index, name: name.into(), kind: 1, flags, mtu: Some(1500), ..Link::default() }
    }
}

#[test]
fn what_is_there_at_first_is_told_once() {
    let mut scene = Scene::new();
    assert_eq!(scene.changes(), ["eth0: accelerated, VF enP37498s1"]);
    assert_eq!(scene.changes(), [""; 0]);
    assert_eq!(scene.look_again(None), [""; 0], "a round without news says nothing");
}

#[test]
fn servicing_is_told_with_its_durations() {
    let mut scene = Scene::new();
    scene.changes();
    // The host takes the VF away.
    scene.pass(60_000);
    scene.say(LogEvent::Dissociated(Serial(1)));
    assert_eq!(scene.changes(), ["eth0: the host associates nothing any more"]);
    scene.pass(10);
    scene.say(LogEvent::SwitchedFromVf);
    assert_eq!(
        scene.changes(),
        [
            "eth0: path switched to synthetic after 2 h 0 min",
            "eth0: accelerated -> paired after 2 h 0 min: its VF is joined, and the host has not switched to it",
        ]
    );
    scene.pass(10);
    scene.say(LogEvent::Unregistering("enP37498s1".into()));
    let index = scene.pair.port.index;
    assert_eq!(scene.tell(News::LinkGone(index)), Told::Taken);
    assert_eq!(
        scene.changes(),
        [
            "enP37498s1: interface is gone",
            "eth0: VF enP37498s1 (927a:00:02.0) is gone",
            "eth0: paired -> synthetic after 0.0 s: the host has associated no VF with it",
        ]
    );
    scene.take_vf();
    assert_eq!(scene.tell(News::Devices), Told::LookAgain);
    assert_eq!(scene.look_again(None), [""; 0]);
    // 31.4 s later it is back, under another serial.
    scene.pass(31_400);
    scene.give_vf("2");
    scene.say(LogEvent::Associated(Serial(2)));
    assert_eq!(scene.tell(News::Devices), Told::LookAgain);
    assert_eq!(
        scene.look_again(None),
        [
            "eth0: the host associates serial 2",
            "enP37498s1: interface arrived",
            "eth0: VF enP37498s1 (927a:00:02.0) is back, was gone for 31.4 s",
            "eth0: synthetic -> paired after 31.4 s: its VF is joined, and the host has not switched to it",
        ]
    );
    scene.pass(200);
    scene.say(LogEvent::SwitchedToVf);
    assert_eq!(
        scene.changes(),
        ["eth0: path switched to vf after 31.6 s", "eth0: paired -> accelerated after 0.2 s"]
    );
}

#[test]
fn a_switch_to_and_fro_is_told_even_if_nothing_is_different_after_it() {
    let mut scene = Scene::new();
    scene.changes();
    scene.pass(100);
    scene.say(LogEvent::SwitchedFromVf);
    let first = scene.changes();
    scene.say(LogEvent::SwitchedToVf);
    let second = scene.changes();
    assert!(first[0].contains("to synthetic") && second[0].contains("to vf after 0.0 s"));
}

#[test]
fn a_vf_that_is_renamed_stays_the_same_one() {
    let mut scene = Scene::new();
    scene.changes();
    let mut link = scene.link(scene.pair.port.index, "fast0");
    link.master = Some(scene.pair.nic.index);
    link.mac = Some(MAC.parse().unwrap());
    assert_eq!(scene.tell(News::Link(Box::new(link))), Told::Taken);
    assert_eq!(scene.changes(), ["fast0: renamed, was enP37498s1"]);
    let mut link = scene.link(scene.pair.nic.index, "lan");
    link.flags = 0x1002;
    assert_eq!(scene.tell(News::Link(Box::new(link))), Told::Taken);
    assert_eq!(scene.changes(), ["lan: renamed, was eth0", "lan: set down"]);
}

#[test]
fn a_vf_that_leaves_its_nic_is_gone_although_it_is_there() {
    let mut scene = Scene::new();
    scene.changes();
    scene.pass(1_000);
    let link = scene.link(scene.pair.port.index, "enP37498s1");
    assert_eq!(scene.tell(News::Link(Box::new(link.clone()))), Told::Taken);
    let words = scene.changes();
    assert!(words[0].contains("VF enP37498s1 (927a:00:02.0) is gone"), "{words:?}");
    assert!(words.last().unwrap().contains("accelerated -> pending"), "{words:?}");
    scene.pass(2_500);
    let link = Link { master: Some(scene.pair.nic.index), ..link };
    assert_eq!(scene.tell(News::Link(Box::new(link))), Told::Taken);
    let words = scene.changes();
    assert!(words[0].contains("is back, was gone for 2.5 s"), "{words:?}");
}

#[test]
fn interfaces_made_by_software_are_followed_and_hardware_is_looked_at() {
    let mut scene = Scene::new();
    scene.changes();
    let veth = Link { made: Some("veth".into()), ..scene.link(90, "v0") };
    assert_eq!(scene.tell(News::Link(Box::new(veth))), Told::Taken);
    assert_eq!(scene.changes(), ["v0: interface arrived"]);
    assert_eq!(scene.tell(News::LinkGone(90)), Told::Taken);
    assert_eq!(scene.changes(), ["v0: interface is gone"]);
    assert_eq!(scene.tell(News::LinkGone(91)), Told::Taken, "of what was never there");
    let hardware = Link { parent_bus: Some("pci".into()), ..scene.link(92, "eth7") };
    assert_eq!(scene.tell(News::Link(Box::new(hardware))), Told::LookAgain);
    let stranger = Link { master: Some(77), ..scene.link(scene.pair.port.index, "enP37498s1") };
    assert_eq!(scene.tell(News::Link(Box::new(stranger))), Told::LookAgain, "an unknown master");
}

#[test]
fn lost_events_are_made_up_for() {
    let mut scene = Scene::new();
    scene.changes();
    scene.pass(5_000);
    scene.take_vf();
    let words = scene.look_again(Some("links"));
    assert_eq!(words[0], "events of links were lost; everything was looked at anew");
    assert!(
        words.iter().any(|line| line.contains("VF enP37498s1 (927a:00:02.0) is gone")),
        "{words:?}"
    );
    // Overwritten records: what was not said is no longer taken for not having happened.
    assert_eq!(scene.tell(News::LogLost(3)), Told::Taken);
    assert!(!scene.watch.snapshot().log.complete);
}

#[test]
fn a_nic_comes_and_goes() {
    let mut scene = Scene::new();
    scene.changes();
    let nic = scene.guest.nic("2d0e6c1a-93f4-4b5e-8a77-0c1d2e3f4a5b", "eth5", "00:15:5d:01:02:03");
    assert_eq!(scene.look_again(None), ["eth5: arrived, synthetic"]);
    scene.guest.remove("sys/class/net/eth5");
    scene.guest.remove(&format!("sys/bus/vmbus/devices/{}", nic.guid));
    assert_eq!(scene.look_again(None), ["eth5: gone, was synthetic"]);
}

#[test]
fn a_log_that_grows_for_ever_is_kept_short_and_forgets_no_association() {
    let mut scene = Scene::new();
    let function =
        Subject::Pci(netvsc_linux::inventory::PciAddress::parse("927a:00:02.0").unwrap());
    for millis in 0..5_000 {
        let at = Duration::from_millis(7_200_000 + millis);
        let line = LogLine { at, subject: function, event: LogEvent::NoSlot, text: String::new() };
        assert_eq!(scene.tell(News::Said(line)), Told::Taken);
    }
    let log = &scene.watch.snapshot().log;
    assert!(log.lines.len() <= 1024, "{}", log.lines.len());
    let nic = scene.pair.nic.guid.parse().unwrap();
    assert_eq!(log.association(nic).map(|(serial, _)| serial), Some(Some(Serial(1))));
    assert_eq!(log.switched_to_vf(nic).map(|(vf, _)| vf), Some(true));
    assert!(log.lines.is_sorted_by_key(|line| line.at));
}

#[test]
fn the_log_alone_tells_the_past() {
    let snapshot = read(&kinds::after_hibernation());
    let words: Vec<_> = history(&snapshot).iter().map(|c| format!("{} {}", c.at, c.what)).collect();
    assert_eq!(
        words,
        [
            "2.130000 the host associates serial 1",
            "6.301000 path switched to vf",
            "60.000000 the host associates nothing any more",
            "60.010000 path switched to synthetic after 53.7 s",
            "60.020000 VF enP37498s1 is gone",
            "90.000000 the host associates serial 2",
            "91.000000 VF eth1 is back, was gone for 31.0 s",
            "91.200000 path switched to vf after 31.2 s",
        ]
    );
}
