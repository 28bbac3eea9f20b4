//! `netvsc metrics`, as Prometheus and people use it.

#[path = "../../netvsc-linux/tests/guest/mod.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod guest;
mod idle;
mod schema;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use guest::{Guest, kinds};
use schema::valid;

/// Most series of one NIC, and of a machine with a few.
const PER_NIC: usize = 40;

fn netvsc(root: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netvsc"))
        .arg("metrics")
        .args(arguments)
        .arg("--sysfs-root")
        .arg(root)
        .output()
        .expect("the program runs")
}

fn text(guest: &Guest) -> String {
    let output = netvsc(guest.root(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A kind of guest and how to make one.
type Named = (&'static str, fn() -> Guest);

/// Every kind of guest.
fn guests() -> Vec<(&'static str, Guest)> {
    let all: Vec<Named> = vec![
        ("azure_mlx4", kinds::azure_mlx4),
        ("azure_mlx5", kinds::azure_mlx5),
        ("worked_example", kinds::worked_example),
        ("azure_mana", kinds::azure_mana),
        ("mana_only", kinds::mana_only),
        ("on_prem", kinds::on_prem),
        ("emulated_beside", kinds::emulated_beside),
        ("synthetic_only", kinds::synthetic_only),
        ("mid_servicing", kinds::mid_servicing),
        ("after_hibernation", kinds::after_hibernation),
        ("driver_missing", kinds::driver_missing),
        ("renamed_vf", kinds::renamed_vf),
        ("vf_in_namespace", kinds::vf_in_namespace),
        ("bonded", kinds::bonded),
        ("duplicate_slot", kinds::duplicate_slot),
        ("confidential", kinds::confidential),
        ("uio_bound", kinds::uio_bound),
        ("without_hyperv", Guest::without_hyperv),
    ];
    all.into_iter().map(|(name, make)| (name, make())).collect()
}

/// A series: its name, and its labels as they are written.
type Series = (String, String);

/// Reads the text format strictly: HELP, TYPE, then the samples of the family and no others; no series twice.
fn parse(text: &str) -> Vec<(Series, f64)> {
    let mut samples = Vec::new();
    let (mut helped, mut typed) = (None, None);
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            assert!(name.starts_with("netvsc_") && help.ends_with('.'), "{line}");
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(Some(name), helped.as_deref(), "{line}");
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            typed = Some(name.to_owned());
        } else {
            let end = line.find(['{', ' ']).expect("a name");
            assert_eq!(Some(&line[..end]), typed.as_deref(), "{line}");
            let (labels, value) = line[end..].rsplit_once(' ').expect("a value");
            assert!(labels.is_empty() || labels.ends_with('}'), "{line}");
            let one = (line[..end].to_owned(), labels.to_owned());
            assert!(series.insert(one.clone()), "twice: {line}");
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            samples.push((one, value));
        }
    }
    samples
}

/// The worked example, whose drivers count, too.
fn counting() -> Guest {
    let guest = kinds::worked_example();
    guest.write(
        "netvsc/statistics",
        "2 vf_rx_packets 900\n2 vf_rx_bytes 990\n2 vf_tx_packets 1200\n2 vf_tx_bytes 10\n2 vf_tx_dropped 3\n",
    );
    guest
}

#[test]
fn a_pair_is_told_with_its_state_its_path_and_its_traffic_apart() {
    let text = text(&counting());
    for line in [
        "netvsc_state{device=\"eth0\",state=\"accelerated\"} 1",
        "netvsc_state{device=\"eth0\",state=\"synthetic\"} 0",
        "netvsc_datapath_vf{device=\"eth0\"} 1",
        "netvsc_receive_packets_total{device=\"eth0\",path=\"vf\"} 900",
        "netvsc_receive_packets_total{device=\"eth0\",path=\"synthetic\"} 100",
        // What was counted between two readings is never negative.
        "netvsc_transmit_packets_total{device=\"eth0\",path=\"synthetic\"} 0",
        "netvsc_transmit_bytes_total{device=\"eth0\",path=\"synthetic\"} 990",
        "netvsc_vf_transmit_dropped_total{device=\"eth0\"} 3",
        "netvsc_check_status{check=\"pair.unpaired\",device=\"\"} 0",
    ] {
        assert!(text.lines().any(|had| had == line), "lacks {line}:\n{text}");
    }
    let info = text.lines().find(|line| line.starts_with("netvsc_pair_info{device=\"eth0\""));
    let info = info.expect("who is paired");
    for label in [
        "driver=\"mlx5_core\"",
        "guid=\"7c1e5225-55d2-7c1e-5225-55d27c1e5225\"",
        "match=\"SerialAndMac\"",
        "pci=\"927a:00:02.0\"",
        "serial=\"1\"",
        "vf=\"enP37498s1\"",
    ] {
        assert!(info.contains(label), "{info}");
    }
    assert!(!text.contains("device=\"eth1\",path="), "nobody counted there: left out, not 0");
    assert!(!text.contains("timestamp"), "a directory has no clock");
}

#[test]
fn every_kind_of_guest_is_told_in_the_format_and_within_its_budget() {
    for (name, guest) in guests() {
        let samples = parse(&text(&guest));
        let of_the_program = |((family, labels), _): &&(Series, f64)| {
            family == "netvsc_build_info"
                && labels.contains("version=")
                && labels.contains("commit=")
        };
        assert_eq!(samples.iter().filter(of_the_program).count(), 1, "{name}");
        let states = samples.iter().filter(|((family, _), _)| family == "netvsc_state");
        let now = states.filter(|(_, value)| *value > 0.0).count();
        let nics: BTreeSet<_> = samples
            .iter()
            .filter(|((family, _), _)| family == "netvsc_pair_info")
            .map(|((_, labels), _)| labels.clone())
            .collect();
        assert!(now >= nics.len(), "{name}: {now} states of {} NICs", nics.len());
        for device in ["eth0", "eth1"] {
            let label = format!("device=\"{device}\"");
            let own = samples.iter().filter(|((family, labels), _)| {
                family != "netvsc_check_status" && labels.contains(&label)
            });
            assert!(own.count() <= PER_NIC, "{name}: {device}");
        }
        assert!(samples.len() <= 400, "{name}: {} series", samples.len());
    }
}

#[test]
fn switches_and_absence_are_told_only_where_the_log_goes_back_to_the_boot() {
    let whole = text(&counting());
    for line in [
        "netvsc_datapath_switches_total{device=\"eth0\",to=\"vf\"} 1",
        "netvsc_datapath_switches_total{device=\"eth0\",to=\"synthetic\"} 0",
        "netvsc_vf_absent_seconds_total{device=\"eth0\"} 0",
    ] {
        assert!(whole.lines().any(|had| had == line), "lacks {line}:\n{whole}");
    }
    let guest = counting();
    guest.remove("dev/kmsg");
    let without = text(&guest);
    assert!(!without.contains("_switches_total") && !without.contains("_absent_"), "nobody knows");
}

#[test]
fn json_has_the_same_and_fits_its_schema() {
    for (name, guest) in guests() {
        let output = netvsc(guest.root(), &["--json"]);
        assert!(output.status.success(), "{name}");
        let told = valid(&String::from_utf8(output.stdout).expect("text"), "metrics-1.json");
        let families = told["metrics"].as_array().expect("families");
        let count: usize =
            families.iter().map(|family| family["samples"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!(count, parse(&text(&guest)).len(), "{name}");
    }
}

#[test]
fn a_file_is_put_in_place_whole_and_readable_and_nothing_else_stays() {
    let (guest, folder) = (counting(), tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("netvsc.prom");
    std::fs::write(&path, "old").expect("a file");
    let asked = path.to_str().expect("a path");
    let output = netvsc(guest.root(), &["--textfile", asked]);
    assert!(output.status.success() && output.stdout.is_empty());
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), text(&guest));
    let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 1);
    let output = netvsc(guest.root(), &["--textfile", "/no/such/folder/netvsc.prom"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--textfile"));
}

/// A metric: its name, its type and its labels.
type Contract = (String, String, String);

/// Adds the metrics of a document, each with the labels that all its numbers have.
fn contracts(output: &Output, all: &mut BTreeSet<Contract>) {
    let told = valid(std::str::from_utf8(&output.stdout).expect("text"), "metrics-1.json");
    for family in told["metrics"].as_array().expect("families") {
        let text = |key: &str| family[key].as_str().expect("text").to_owned();
        for sample in family["samples"].as_array().expect("numbers") {
            let labels: Vec<_> =
                sample["labels"].as_object().expect("labels").keys().cloned().collect();
            let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
            all.insert((text("name"), text("type"), labels));
        }
    }
}

#[test]
fn every_name_type_and_label_is_as_the_document_has_it() {
    let mut told = BTreeSet::new();
    let leaking = (guest::complaints::COMPLAINTS[0].build)();
    for guest in guests().into_iter().map(|(_, guest)| guest).chain([counting(), leaking]) {
        contracts(&netvsc(guest.root(), &["--json"]), &mut told);
    }
    let live = Command::new(env!("CARGO_BIN_EXE_netvsc")).args(["metrics", "--json"]).output();
    contracts(&live.expect("the program runs"), &mut told);
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/METRICS.md"));
    let document = document.expect("the document");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| netvsc_"));
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim);
        let mut cell = || cells.next().map(str::to_owned);
        Some((format!("netvsc_{}", cell()?), cell()?, cell()?))
    };
    let written: BTreeSet<Contract> = rows
        .filter_map(row)
        .filter(|(_, kind, _)| ["gauge", "counter"].contains(&kind.as_str()))
        .collect();
    assert_eq!(told, written);
    // What is told by channel is told so in every series.
    let mut by_channel = BTreeSet::new();
    contracts(&netvsc(counting().root(), &["--json", "--per-channel"]), &mut by_channel);
    let by_channel: Vec<_> = by_channel
        .difference(&told)
        .map(|(name, _, labels)| (name.as_str(), labels.as_str()))
        .collect();
    let channel = "channel, device";
    assert_eq!(
        by_channel,
        [("netvsc_vmbus_interrupts_total", channel), ("netvsc_vmbus_ring_full_total", channel)]
    );
}

/// A program that serves metrics of this machine at a socket, until it is dropped.
struct Server(Child, std::path::PathBuf);

impl Server {
    fn start(path: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_netvsc"))
            .args(["metrics", "--listen", &format!("unix:{}", path.display())])
            .stderr(Stdio::null())
            .spawn()
            .expect("the program runs");
        Self(child, path.to_owned())
    }

    /// The answer to a request, once somebody listens.
    fn ask(&self, request: &str) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        let mut stream = loop {
            match UnixStream::connect(&self.1) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < end, "nobody listens: {error}"),
            }
            std::thread::yield_now();
        };
        stream.write_all(request.as_bytes()).expect("a listener");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn metrics_are_served_to_who_asks_for_them_and_everything_else_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("metrics.sock");
    let mut server = Server::start(&path);
    let answer = server.ask("GET /metrics HTTP/1.1\r\nHost: netvsc\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    let samples = parse(body);
    let scan = |((family, _), _): &(Series, f64)| family == "netvsc_last_scan_timestamp_seconds";
    assert!(samples.iter().any(scan), "{body}");
    let head = server.ask("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
    for (request, status) in [
        ("GET / HTTP/1.0\r\n\r\n", "200"),
        ("GET /else HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = server.ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
    // Nothing wakes it up but a request.
    assert_eq!(idle::longest_sleep(server.0.id()), None);
    let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let id = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
    assert!(server.0.wait().expect("it ends").success());
    assert!(!path.exists(), "the socket is gone with it");
}

/// `promtool`, unless it is not here.
fn promtool(test: &str) -> Option<Command> {
    let found = Command::new("promtool").arg("--version").output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(Command::new("promtool"));
    }
    assert!(std::env::var_os("NETVSC_NO_SKIP").is_none(), "{test} must run here: no promtool");
    eprintln!("skipped: {test}: promtool is not installed");
    None
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics_of_any_guest() {
    for (name, guest) in guests().into_iter().chain([("counting", counting())]) {
        let Some(mut command) = promtool("the metrics") else { return };
        let mut child = command
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut pipe = child.stdin.take().expect("a pipe");
        pipe.write_all(text(&guest).as_bytes()).expect("it reads");
        drop(pipe);
        let output = child.wait_with_output().expect("it ends");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
    }
}

#[test]
fn the_alerts_are_raised_when_they_should_be_and_not_otherwise() {
    let Some(mut command) = promtool("the alerts") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/prometheus");
    let output = command
        .args(["test", "rules", "netvsc.test.yml"])
        .current_dir(&folder)
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
