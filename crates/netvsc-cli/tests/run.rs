//! The program's run on the embedded host, as its users start it.

mod schema;

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_netvsc");

fn run(options: &[&str]) -> Output {
    Command::new(PROGRAM).arg("run").args(options).output().expect("the program starts")
}

/// Every line as JSON, with times taken out.
fn events(output: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let parse = |line: &str| {
        let mut event: Value = serde_json::from_str(line).expect("each line is JSON");
        let _ = event.as_object_mut().expect("an object").remove("wall_seconds");
        event
    };
    text.lines().map(parse).collect()
}

fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

#[test]
fn a_seed_repeats_a_run_exactly_and_another_gives_another() {
    let run = |seed| events(&run(&["--json", "--size", "2MiB", "--seed", seed]));
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn pairs_have_the_serials_that_the_host_gave_and_nothing_is_lost() {
    for seed in 1..=4 {
        let seed = seed.to_string();
        let events = events(&run(&["--json", "--seed", &seed]));
        let summary = events.last().expect("a summary");
        assert_eq!(summary["event"], "summary");
        assert_eq!(summary["digest_ok"], true, "seed {seed}");
        assert_eq!(summary["frames_lost_orderly"], 0, "seed {seed}");
        assert_eq!(summary["frames_duplicated"], 0, "seed {seed}");
        assert_eq!((&summary["ejects"], &summary["surprises"]), (&3.into(), &1.into()));
        assert!(summary["frames_resent"].as_u64() > Some(0), "the VF torn away was at work");

        // What the host said last on each NIC's own channel is what its pair has.
        let mut associated = BTreeMap::new();
        for event in of(&events, "associated") {
            associated.insert(event["nic"].as_u64(), event["serial"].as_u64());
        }
        let pairs = summary["pairs"].as_array().expect("pairs");
        assert_eq!(pairs.len(), 2, "seed {seed}");
        for pair in pairs {
            assert_eq!(pair["serial"].as_u64(), associated[&pair["nic"].as_u64()]);
            assert_eq!(
                (&pair["reason"], &pair["state"]),
                (&"SerialAndMac".into(), &"accelerated".into())
            );
        }
    }
}

#[test]
fn no_pair_is_made_by_mac_alone_once_the_host_has_named_the_ports_serial() {
    let mut known = 0;
    for seed in 1..=20 {
        let seed = seed.to_string();
        let mut named: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for event in events(&run(&["--json", "--size", "64KiB", "--seed", &seed])) {
            let (nic, serial) = (event["nic"].as_u64().unwrap_or(0), event["serial"].as_u64());
            match event["event"].as_str() {
                Some("associated") => _ = named.insert(nic, serial),
                Some("disassociated") => _ = named.remove(&nic),
                Some("paired") if named.get(&nic) == Some(&serial) => {
                    assert_eq!(event["reason"], "SerialAndMac", "seed {seed}: {event}");
                    known += 1;
                }
                _ => {}
            }
        }
    }
    assert!(known > 0, "some are named in time");
}

/// The sum of a figure over the queues of a NIC.
fn over_queues(nic: &Value, figure: &str) -> u64 {
    let queues = nic["queues"].as_array().expect("queues");
    queues.iter().map(|queue| queue[figure].as_u64().expect("a figure")).sum()
}

#[test]
fn flows_are_spread_over_queues_and_nothing_is_lost_as_vfs_come_and_go() {
    for (seed, queues) in [("1", 2), ("2", 4), ("3", 7), ("4", 64)] {
        let count = queues.to_string();
        let options = ["--json", "--size", "16MiB", "--seed", seed, "--queues", &count];
        let output = run(&options);
        let events = events(&output);
        let text = String::from_utf8_lossy(&output.stdout);
        let summary = schema::valid(text.lines().last().expect("a summary"), "run-1.json");
        assert_eq!(summary["digest_ok"], true, "seed {seed}");
        assert_eq!(summary["frames_lost_orderly"], 0, "seed {seed}");
        assert_eq!(summary["bytes"], 2 * (16 << 20), "seed {seed}");
        assert_eq!((&summary["ejects"], &summary["surprises"]), (&3.into(), &1.into()));
        assert_eq!(of(&events, "transfer_done").len(), 2 * queues, "each flow is a transfer");
        let nics = summary["counters"].as_array().expect("counters");
        let sent = nics.iter().map(|nic| over_queues(nic, "tx_frames")).sum::<u64>();
        assert_eq!(sent, summary["frames_synthetic"], "seed {seed}: nothing is sent beside queues");
        for nic in nics {
            assert_eq!(nic["channels"], queues, "seed {seed}: all are in use");
            let all = nic["queues"].as_array().expect("queues");
            assert_eq!(all.len(), queues);
            let busy = |figure: &str| all.iter().filter(|queue| queue[figure] != 0).count();
            // 64 flows do not meet every one of 64 queues, and some are short.
            let least = (queues / 2).min(16);
            assert!(busy("tx_frames") >= least && busy("rx_frames") >= least, "{nic}");
            assert_eq!((over_queues(nic, "bad"), over_queues(nic, "tx_refused")), (0, 0));
        }
    }
}

#[test]
fn with_one_queue_the_summary_has_the_nics_counters_too() {
    let output = run(&["--json", "--size", "1MiB"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = schema::valid(text.lines().last().expect("a summary"), "run-1.json");
    for nic in summary["counters"].as_array().expect("counters") {
        assert_eq!((&nic["channels"], &nic["sent"]), (&1.into(), &serde_json::json!({})));
        assert!(nic["associations"].as_u64() > Some(0), "{nic}");
        assert_eq!(over_queues(nic, "tx_completed"), over_queues(nic, "tx_messages"));
    }
    let plain = run(&["--size", "1MiB", "--queues", "2"]);
    let plain = String::from_utf8_lossy(&plain.stdout);
    assert!(plain.contains("nic  queue  frames out"), "{plain}");
}

// HISTORY 19, 21: the MAC is the same, the device is not a candidate.
#[test]
fn the_emulated_nic_is_refused_by_rule_and_never_paired() {
    let events = events(&run(&["--json", "--size", "1MiB"]));
    let ignored = of(&events, "ignored");
    assert_eq!(ignored.len(), 1);
    assert!(ignored[0]["why"].as_str().is_some_and(|why| why.contains("P1")), "{}", ignored[0]);
    let ready = of(&events, "nic_ready");
    assert!(ready.iter().any(|nic| nic["mac"] == ignored[0]["mac"]), "it has the MAC of a NIC");
    // Every pair was made with a function that had arrived over vPCI under that serial.
    let arrived: Vec<_> =
        of(&events, "function_arrived").iter().map(|f| f["serial"].clone()).collect();
    for pair in of(&events, "paired") {
        assert!(arrived.contains(&pair["serial"]), "{pair}");
    }
}

// HISTORY 16, 40: one function for all NICs, and disks with its serial number beside.
#[test]
fn a_shared_function_is_paired_port_by_port_and_disks_never() {
    for (layout, reason) in [("own", "SerialAndMac"), ("shared", "SerialAndMac"), ("mana", "Mac")] {
        let options = ["--json", "--size", "2MiB", "--seed", "5", "--vf", layout, "--disks", "2"];
        let events = events(&run(&options));
        let summary = events.last().expect("a summary");
        assert_eq!(
            (&summary["digest_ok"], &summary["frames_lost_orderly"]),
            (&true.into(), &0.into())
        );
        let pairs = summary["pairs"].as_array().expect("pairs");
        assert_eq!(pairs.len(), 2, "{layout}");
        assert!(pairs.iter().all(|pair| pair["reason"] == reason), "{layout}: {pairs:?}");
        assert_eq!(pairs[0]["serial"] == pairs[1]["serial"], layout != "own", "{layout}");
        let arrived = of(&events, "function_arrived");
        let disks = arrived.iter().filter(|function| function["id"] == "1414:b111").count();
        assert_eq!(disks, 2, "{layout}");
    }
}

#[test]
fn a_file_arrives_as_it_is() {
    let path = std::env::temp_dir().join(format!("netvsc-run-{}", std::process::id()));
    std::fs::write(&path, vec![0x5a; 300_001]).expect("a place for a file");
    let output = run(&["--json", "--transfer", path.to_str().expect("a plain path")]);
    std::fs::remove_file(&path).expect("it is there");
    let events = events(&output);
    let done = of(&events, "transfer_done");
    assert_eq!(done.len(), 2);
    for transfer in done {
        assert_eq!(transfer["bytes"], 300_001);
        assert_eq!(
            transfer["digest"], "a0984c8020c300c55b59433ffed45efe4fe058544bba9d76bff593cbcfe1d791",
            "SHA-256 of the file"
        );
    }
}

#[test]
fn plain_lines_say_which_host_and_end_with_the_totals() {
    let output = run(&["--size", "1MiB"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().next().is_some_and(|line| line.contains("host: embedded")), "{text}");
    assert!(text.contains("every digest matches"), "{text}");
    assert!(text.contains("frames lost by orderly switches: 0\n"), "{text}");
}

#[test]
fn without_anybody_who_reads_the_output_the_run_ends_without_a_word() {
    for both in [false, true] {
        let mut child = Command::new(PROGRAM)
            .arg("run")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let errors = child.stderr.take().filter(|_| !both);
        let said = errors.map(|errors| std::io::read_to_string(errors).expect("text"));
        let status = child.wait().expect("it ends");
        assert_eq!((status.code(), said.as_deref().unwrap_or("")), (Some(1), ""), "{both}");
    }
}
