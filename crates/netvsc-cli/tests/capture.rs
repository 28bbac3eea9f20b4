//! `netvsc run --pcap`: the file that it writes, read back with the crate that wrote it and with tshark.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

/// A file name of this test's own; the file goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("netvsc-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run(options: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--json", "--size", "16MiB", "--seed", "3"]).args(options);
    command.output().expect("the program starts")
}

/// The events, without the wall time.
fn events(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| {
            let mut event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let _ = event.as_object_mut().expect("an object").remove("wall_seconds");
            event
        })
        .collect()
}

/// Frames of each interface.
fn frames(path: &Path) -> BTreeMap<String, u64> {
    let mut reader = PcapNgReader::new(File::open(path).expect("a file")).expect("pcapng");
    let (mut names, mut counts) = (Vec::new(), BTreeMap::new());
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
                assert!(packet.data.len() >= 14 && packet.data.len() as u32 == packet.original_len);
                let name = names[packet.interface_id as usize].clone();
                *counts.entry(name).or_default() += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    counts
}

#[test]
fn every_path_and_direction_is_an_interface_and_tshark_reads_it() {
    let file = Scratch::new("run.pcapng");
    let with = events(&run(&["--pcap", file.0.to_str().expect("a plain path")]));
    assert_eq!(with, events(&run(&[])), "a run goes the same way with and without a capture");

    let counts = frames(&file.0);
    let expected: Vec<String> = (0..2)
        .flat_map(|nic| {
            ["synthetic", "vf"].into_iter().flat_map(move |path| {
                ["in", "out"].into_iter().map(move |way| format!("nic{nic}-{path}-{way}"))
            })
        })
        .collect();
    assert_eq!(counts.keys().cloned().collect::<Vec<_>>(), expected);
    // The summary counts what went over each path by itself.
    let summary = with.last().expect("a summary");
    for (path, field) in [("synthetic", "frames_synthetic"), ("vf", "frames_vf")] {
        let captured: u64 = (0..2).map(|nic| counts[&format!("nic{nic}-{path}-out")]).sum();
        assert_eq!(summary[field].as_u64(), Some(captured), "{summary}");
    }
    with_tshark(&file.0, &counts);
}

#[test]
fn every_queue_is_an_interface_with_the_frames_that_it_counted() {
    let file = Scratch::new("queues.pcapng");
    let name = file.0.to_str().expect("a plain path");
    let with = events(&run(&["--queues", "3", "--pcap", name]));
    let counts = frames(&file.0);
    let summary = with.last().expect("a summary");
    let mut expected = BTreeMap::new();
    for (number, nic) in summary["counters"].as_array().expect("counters").iter().enumerate() {
        for queue in nic["queues"].as_array().expect("queues") {
            for (way, figure) in [("in", "rx_frames"), ("out", "tx_frames")] {
                let interface = format!("nic{number}-synthetic-q{}-{way}", queue["queue"]);
                expected.insert(interface, queue[figure].as_u64().expect("a figure"));
            }
        }
    }
    expected.retain(|_, frames| *frames > 0);
    let (on_vfs, on_queues): (BTreeMap<_, _>, BTreeMap<_, _>) =
        counts.clone().into_iter().partition(|(name, _)| name.contains("-vf-"));
    assert_eq!(on_queues, expected);
    let names: Vec<&str> = on_vfs.keys().map(String::as_str).collect();
    assert_eq!(names, ["nic0-vf-in", "nic0-vf-out", "nic1-vf-in", "nic1-vf-out"]);
    with_tshark(&file.0, &counts);
}

/// Another reader counts the same frames on the same interfaces and finds none malformed.
fn with_tshark(path: &Path, counts: &BTreeMap<String, u64>) {
    let tshark = |options: &[&str]| {
        let mut command = Command::new("tshark");
        let output = command.arg("-n").arg("-r").arg(path).args(options).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).expect("text"))
    };
    let Some(names) = tshark(&["-T", "fields", "-e", "frame.interface_name"]) else {
        // CI installs it where it can; no other run needs it.
        println!("skipped: tshark is not installed");
        return;
    };
    let mut seen = BTreeMap::new();
    names.lines().for_each(|name| *seen.entry(name.to_owned()).or_default() += 1);
    assert_eq!(&seen, counts);
    assert_eq!(tshark(&["-Y", "_ws.malformed"]).as_deref(), Some(""));
    let tcp = tshark(&["-Y", "tcp", "-T", "fields", "-e", "frame.number"]).unwrap_or_default();
    assert!(tcp.lines().count() > 1000, "TCP segments are recognised");
}

#[test]
fn a_file_that_cannot_be_written_or_is_the_input_is_refused_and_stays() {
    let output = run(&["--pcap", "/nonexistent/run.pcapng"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nonexistent/run.pcapng") && text.contains("--pcap"), "{text}");

    let file = Scratch::new("input");
    std::fs::write(&file.0, b"precious").expect("the temporary folder is writable");
    let name = file.0.to_str().expect("a plain path");
    let same = format!("{}/./{}", std::env::temp_dir().display(), name.rsplit('/').next().unwrap());
    let output = Command::new(PROGRAM).args(["run", "--transfer", name, "--pcap", &same]).output();
    let output = output.expect("the program starts");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(&file.0).expect("still there"), b"precious");
}
