//! Which link carries what, by captures on each of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netvsc::VfPort as _;
use netvsc_linux::vf::{PacketConfig, PacketPort, Reception};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::long;
use crate::namespace::{in_namespace, ip};
use crate::setup::{ON_SYNTHETIC, ON_VF, Setup};

/// How many echoes a flood of them has.
fn echoes() -> u16 {
    if long() { 50_000 } else { 1000 }
}

/// Bytes of TCP's payload that arrive at an interface while something goes on.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Capture {
    fn on(name: &str) -> Self {
        let config = PacketConfig { reception: Reception::Queue, ..PacketConfig::default() };
        let mut port = PacketPort::open(name, config).expect("an interface");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = thread::spawn(move || {
            let mut bytes = 0;
            loop {
                let last = asked.load(Ordering::Relaxed);
                port.receive(&mut |frame| bytes += payload(frame));
                if last {
                    assert_eq!(port.counters().dropped, 0, "the capture is whole");
                    return bytes;
                }
                thread::sleep(Duration::from_micros(100));
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the capture works")
    }
}

/// Bytes of TCP's payload that a capture of the run has by its interfaces, each of which is a path and a direction.
fn captured(file: &Path) -> BTreeMap<String, u64> {
    let mut reader = PcapNgReader::new(File::open(file).expect("a file")).expect("pcapng");
    let (mut names, mut bytes) = (Vec::new(), BTreeMap::new());
    while let Some(block) = reader.next_block() {
        match block.expect("a sound block") {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                names.push(name.expect("every interface has a name"));
            }
            Block::EnhancedPacket(packet) => {
                let name = names[packet.interface_id as usize].clone();
                *bytes.entry(name).or_default() += payload(&packet.data);
            }
            other => panic!("{other:?}"),
        }
    }
    bytes
}

#[test]
fn frames_go_over_the_interface_while_it_is_the_vf_and_only_then() {
    in_namespace("captures::frames_go_over_the_interface_while_it_is_the_vf_and_only_then", || {
        let file = std::env::temp_dir().join(format!("netvsc-paths-{}", std::process::id()));
        let name = file.to_str().expect("a plain path");
        let mut setup = Setup::new("vf-capture", &[], &["--pcap", name]);
        let capture = Capture::on("vfh");
        let over_vf = setup.transfer(|_| thread::sleep(Duration::from_millis(300))).bytes;
        let seen = capture.end();
        assert!(over_vf > 1 << 20 && seen >= over_vf, "{seen} of {over_vf} bytes over the VF");
        setup.flood(echoes());

        ip("link set vfg down");
        setup.run.wait_for(ON_SYNTHETIC, 1);
        let capture = Capture::on("vfh");
        let bytes = setup.transfer(|_| thread::sleep(Duration::from_millis(300))).bytes;
        setup.flood(echoes());
        let seen = capture.end();
        assert!(bytes > 1 << 20 && seen == 0, "{seen} of {bytes} bytes over the VF");

        ip("link set vfg up");
        setup.run.wait_for(ON_VF, 2);
        let capture = Capture::on("vfh");
        setup.transfer(|_| thread::sleep(Duration::from_millis(100)));
        assert!(capture.end() > 0);
        let summary = setup.finish();
        for path in ["frames_vf", "frames_synthetic"] {
            assert!(summary[path].as_u64() > Some(0), "{summary}");
        }
        assert_eq!(summary["frames_lost_orderly"], 0, "{summary}");
        // The run's own capture knows the synthetic path, too.
        let by_path = captured(&file);
        let _ = std::fs::remove_file(&file);
        let out = |path: &str| by_path.get(&format!("nic0-{path}-out")).copied().unwrap_or(0);
        assert!(out("vf") >= over_vf && out("synthetic") >= bytes, "{by_path:?}");
        // What is sent again is little.
        assert!(out("synthetic") < bytes + bytes / 4, "{bytes} bytes sent: {by_path:?}");
    });
}

/// Bytes of payload of a frame to the receiver of a transfer.
fn payload(frame: &[u8]) -> u64 {
    if frame.get(23) != Some(&6) || frame.get(36..38) != Some(&[0x13, 0x89]) {
        return 0;
    }
    let headers = 34 + usize::from(frame[46] >> 4) * 4;
    let len = usize::from(u16::from_be_bytes([frame[16], frame[17]])) + 14;
    (len - headers) as u64
}
