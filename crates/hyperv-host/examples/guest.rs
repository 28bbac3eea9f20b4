//! A whole guest out of the crates `vmbus`, `vpci` and `netvsc`, on the host of this crate: one NIC comes up, gets a VF, sends on it,
//! gives it back, and has another one torn away, without losing a frame. What a kernel writes around the machines is in
//! `whole_guest/mod.rs`.
//!
//!     cargo run -p hyperv-host --example guest

use std::time::Duration;

use hyperv_host::Host;
use hyperv_host::host::{Disassociation, VfPlace, VfSpec};
use netvsc::Path;
use vmbus::time::earliest;
use vmbus::{Instant, Serial};

mod whole_guest;
use whole_guest::{Guest, MAC, Outcome, VF, settle, start, until};

/// A frame leaves, by whichever path is live, and arrives at the switch's other end.
fn send(host: &mut Host, guest: &mut Guest, now: &mut Instant, number: u8) -> Outcome<()> {
    let mut frame = [number; 60];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&MAC.0);
    let adapter = guest.adapter().ok_or("no NIC")?;
    adapter.transmit(&frame, *now)?;
    adapter.flush();
    let mut arrived = None;
    for _ in 0..100 {
        settle(host, guest, *now)?;
        arrived = host.peer_receive(0, *now);
        if arrived.is_some() {
            break;
        }
        *now = earliest(host.poll_deadline(), guest.deadline()).unwrap_or(*now).max(*now);
    }
    let path = host.data_path(0).ok_or("no NIC")?;
    println!(
        "{now} frame {number} on the {path} path: {} bytes arrived",
        arrived.as_ref().map_or(0, Vec::len)
    );
    if arrived.as_deref() == Some(&frame[..]) {
        Ok(())
    } else {
        Err("another frame arrived".into())
    }
}

fn main() -> Outcome<()> {
    let mut now = Instant::ZERO;
    let (mut host, mut guest) = start(now)?;

    until(&mut host, &mut guest, &mut now, |_, guest| guest.is_ready())?;
    send(&mut host, &mut guest, &mut now, 1)?;

    host.add_vf(0, VF, now)?;
    let on = |path| move |host: &mut Host, _: &mut Guest| host.data_path(0) == Some(path);
    until(&mut host, &mut guest, &mut now, on(Path::Vf))?;
    send(&mut host, &mut guest, &mut now, 2)?;

    host.eject_vf(0, Disassociation::After(Duration::from_millis(1)), now)?;
    until(&mut host, &mut guest, &mut now, |_, guest| !guest.has_vf())?;
    send(&mut host, &mut guest, &mut now, 3)?;

    // It comes back under another serial, and is torn away: nobody is asked.
    let vf = VfSpec { serial: Serial(8), ..VF };
    until(&mut host, &mut guest, &mut now, |host, _| host.vf_place(0) == VfPlace::Absent)?;
    host.add_vf(0, vf, now)?;
    until(&mut host, &mut guest, &mut now, on(Path::Vf))?;
    send(&mut host, &mut guest, &mut now, 4)?;
    host.tear_away_vf(0, Disassociation::First, now)?;
    until(&mut host, &mut guest, &mut now, on(Path::Synthetic))?;
    send(&mut host, &mut guest, &mut now, 5)?;
    Ok(())
}
