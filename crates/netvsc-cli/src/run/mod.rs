//! `netvsc run`: brings up every NIC of the host, pairs, and keeps the traffic on the best path.

mod account;
mod counters;
mod follow;
mod kernel;
mod plan;
mod remote;
mod simulation;
pub(crate) mod stage;
pub(crate) mod uio;

use std::path::Path as FilePath;
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use crate::args::{HostChoice, RunArgs};
use crate::capture::Capture;
use crate::error::Error;
use crate::event::What;
use crate::report::Report;
use crate::timeline::{Heading, Target};
use crate::transfer::{Source, part};

pub use account::Account;
pub use counters::{NicLine, QueueLine};
pub use plan::{NicPlan, Plan};
pub use simulation::{Outcome, Simulation};

/// NICs of the default run.
const NICS: usize = 2;

/// Where Linux shows the devices of a VMBus.
const VMBUS_DEVICES: &str = "/sys/bus/vmbus/devices";

/// Carries out `netvsc run`.
///
/// # Errors
/// What stood in the way, or why the run was not good.
pub fn run(args: &RunArgs) -> Result<ExitCode, Error> {
    let capture = args.pcap.as_deref().map(Capture::create).transpose()?;
    let done = match (&args.host, &args.tap) {
        (HostChoice::Unix(path), _) => remote::run(args, path, capture.as_ref()),
        (HostChoice::Uio, _) => uio::run(args, capture.as_ref()),
        (_, Some(tap)) => kernel::run(args, tap, capture.as_ref()),
        (_, None) => transfer(args, capture.as_ref()),
    };
    // What was captured is worth having above all when the run was not good.
    let written = capture.map_or(Ok(()), |capture| capture.finish());
    done.and_then(|status| written.map(|()| status))
}

/// Why the embedded host is used.
fn host_reason(choice: &HostChoice) -> String {
    match choice {
        HostChoice::Embedded | HostChoice::Unix(_) | HostChoice::Uio => "asked for".into(),
        HostChoice::Auto if FilePath::new(VMBUS_DEVICES).is_dir() => {
            "this machine has a VMBus, whose NICs are driven only if asked for: --host uio".into()
        }
        HostChoice::Auto => "this machine has no VMBus".into(),
    }
}

/// The first event of every run.
fn host_event(args: &RunArgs) -> What {
    What::Host { host: "embedded", reason: host_reason(&args.host), seed: args.seed }
}

fn transfer(args: &RunArgs, capture: Option<&Capture>) -> Result<ExitCode, Error> {
    let started = Clock::now();
    let plan = Plan::new(args.seed, NICS, false).with_devices(args.vf, args.disks);
    let plan = plan.with_queues(args.uio.queues);
    let flows = u64::from(plan.queues);
    let parts = plan.nics.iter().flat_map(|nic| (0..flows).map(move |flow| (nic.data_seed, flow)));
    let sources = parts.map(|(seed, flow)| match &args.transfer {
        Some(path) => Source::part_of_file(path, flow, flows),
        None => Ok(Source::seeded(seed ^ flow << 32, part(args.size.0, flow, flows).1)),
    });
    // Whatever is wrong with the input is found before anything is printed.
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let picture = args.timeline.as_deref().map(Target::create).transpose()?;
    let mut report = Report::choose(args.json);
    let mut simulation = Simulation::new(plan, sources)?;
    if let Some(capture) = capture {
        simulation.capture_into(capture.clone());
    }
    simulation.tell(host_event(args));
    if picture.is_some() {
        simulation.record();
    }
    let ended = simulation.run(&mut report);
    if let (Some(target), Some(recorder)) = (picture, simulation.recorded()) {
        target.write(&recorder, &heading(args, &ended))?;
    }
    let outcome = ended?;
    let summary = outcome.summary(started.elapsed());
    report.summary(&summary)?;
    outcome.verdict().map_err(Error::Run)?;
    Ok(ExitCode::SUCCESS)
}

/// What the head of a run's picture says. The wall clock has no place in it.
fn heading(args: &RunArgs, ended: &Result<Outcome, Error>) -> Heading {
    let title = format!("netvsc run --seed {}", args.seed);
    match ended {
        Err(error) => Heading { title, verdict: Err(error.to_string()), figures: Vec::new() },
        Ok(outcome) => {
            let sums = outcome.summary(Duration::ZERO);
            let frames = format!(
                "{} NICs, {} bytes; frames sent: {} on VFs, {} on synthetic paths, {} of them again; {} lost",
                sums.nics,
                sums.bytes,
                sums.frames_vf,
                sums.frames_synthetic,
                sums.frames_resent,
                sums.frames_lost_orderly
            );
            let figures = vec![frames, sums.blackouts.to_string()];
            Heading { title, verdict: outcome.verdict(), figures }
        }
    }
}
