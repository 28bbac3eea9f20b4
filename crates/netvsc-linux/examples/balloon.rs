//! Speaks with the memory balloon of a Hyper-V host through `uio_hv_generic`: a real device behind a real VMBus.
//!
//! ```text
//! balloon [ROUNDS [gone]]
//! ```
//!
//! The first thing a balloon's driver says is which version it speaks. This program proposes one that does not exist and is
//! refused, ROUNDS times; each time the host's doorbell is rung by the device's file, and its answer waited for by it. The last
//! proposal is version 3, which is accepted, and the capabilities follow. In the end the device goes back to the driver that it
//! came from. With `gone` the program waits until it is taken away instead.
//!
//! Messages: the dynamic memory protocol (Linux `hv_balloon.c`): type and size, 16 bits each, a number of 32 bits that the answer
//! repeats, and the contents, little-endian, in-band.

use std::error::Error;
use std::fs;
use std::path::Path;

use netvsc_linux::uio::{Binding, Device, Interrupt, Journal, UIO_DRIVER, UioDoorbell};
use vmbus::memory::{SharedMemory, SharedPages};
use vmbus::packet::Outgoing;
use vmbus::{Channel, Guid};

/// The class of balloons.
const BALLOON: &str = "525074dc-8985-46e2-8057-a307dc18a502";
/// How long an answer may take, in milliseconds. Two machines emulated inside each other are slow.
const PATIENCE: u32 = 20_000;

const VERSION_REQUEST: u16 = 1;
const VERSION_RESPONSE: u16 = 2;
const CAPABILITIES_REPORT: u16 = 3;
const CAPABILITIES_RESPONSE: u16 = 4;

/// A version that no host knows, and one that every host knows.
const UNKNOWN: u32 = 0x00ff_0000;
const VERSION_3: u32 = 0x0002_0000;

struct Balloon {
    device: Device,
    channel: Channel<SharedPages, UioDoorbell>,
    next: u32,
}

impl Balloon {
    /// Says something and returns the contents of the answer.
    fn ask(&mut self, kind: u16, contents: &[u8], answer: u16) -> Result<u64, Box<dyn Error>> {
        self.next += 1;
        let mut message = Vec::with_capacity(32);
        message.extend(kind.to_le_bytes());
        message.extend((8 + contents.len() as u16).to_le_bytes());
        message.extend(self.next.to_le_bytes());
        message.extend(contents);
        let transaction_id = self.next.into();
        self.channel.try_send(&Outgoing::InBand {
            transaction_id,
            completion: false,
            payload: &message,
        })?;
        let mut buffer = [0; 256];
        loop {
            if let Some(packet) = self.channel.receive(&mut buffer)? {
                let word = |at: usize, len: usize| {
                    packet.payload.get(at..at + len).map(|bytes| {
                        bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
                    })
                };
                let found = (word(0, 2), word(4, 4));
                if found != (Some(answer.into()), Some(self.next.into())) {
                    let expected = (answer, self.next);
                    return Err(
                        format!("expected {expected:?} (type, number), got {found:?}").into()
                    );
                }
                return word(8, 8).ok_or_else(|| "an answer without contents".into());
            }
            if self.channel.arm()? {
                continue;
            }
            match self.device.wait(Some(PATIENCE))? {
                Interrupt::Rang { .. } => self.channel.mask()?,
                Interrupt::Quiet => return Err(format!("no answer in {PATIENCE} ms").into()),
                Interrupt::Gone => return Err("the device is gone".into()),
            }
        }
    }

    fn propose(&mut self, version: u32, last: bool) -> Result<bool, Box<dyn Error>> {
        let mut contents = version.to_le_bytes().to_vec();
        contents.extend(u32::from(last).to_le_bytes());
        Ok(self.ask(VERSION_REQUEST, &contents, VERSION_RESPONSE)? & 1 != 0)
    }
}

/// The balloon of this machine.
fn find(root: &Path) -> Result<Guid, Box<dyn Error>> {
    for entry in fs::read_dir(root.join("sys/bus/vmbus/devices"))? {
        let path = entry?.path();
        let class = fs::read_to_string(path.join("class_id")).unwrap_or_default();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if class.contains(BALLOON) {
            return Ok(Guid::try_parse(name)?);
        }
    }
    Err("there is no memory balloon on this machine's VMBus".into())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let rounds: u32 = args.next().map_or(Ok(2000), |rounds| rounds.parse())?;
    let gone = args.next().is_some();
    let root = Path::new("/");
    let guid = find(root)?.to_string();

    let binding = Binding::to(root, &guid, UIO_DRIVER, Journal::new("/run/netvsc/bind"))?;
    let device = Device::open(root, &guid)?;
    for map in device.maps() {
        println!("{} map {}: {} of {} bytes", device.name(), map.index, map.name, map.size);
    }
    // This device uses neither, but the kernel has shared them with the host under these numbers.
    for (name, (gpadl, memory)) in
        [("receive", device.receive_buffer()?), ("send", device.send_buffer()?)]
    {
        let last = memory.size() - 1;
        for (at, byte) in [(0, 0x5a), (last, 0xa5)] {
            memory.write(at, &[byte])?;
            let mut read = [0];
            memory.read(at, &mut read)?;
            assert_eq!(read, [byte], "byte {at} of the {name} buffer");
        }
        println!("{name} buffer: GPADL {:#x}, {} bytes, written and read", gpadl.0, last + 1);
    }
    let channel = device.channel()?;
    let mut balloon = Balloon { device, channel, next: 0 };
    for round in 0..rounds {
        if balloon.propose(UNKNOWN, false)? {
            return Err(format!("round {round}: a version that does not exist was accepted").into());
        }
    }
    if !balloon.propose(VERSION_3, true)? {
        return Err("version 3 was refused".into());
    }
    // Ballooning and hot add, aligned to 128 MiB (2 to the power of 7); then the fewest and the highest page.
    let mut report = (0b11_u64 | 7 << 2).to_le_bytes().to_vec();
    report.extend(1024_u64.to_le_bytes());
    report.extend(1_048_576_u64.to_le_bytes());
    if balloon.ask(CAPABILITIES_REPORT, &report, CAPABILITIES_RESPONSE)? & 1 == 0 {
        return Err("the capabilities were refused".into());
    }
    println!("{} answers: {:?}", rounds + 2, balloon.channel.stats());

    if gone {
        println!("waiting until the device is taken away");
        loop {
            match balloon.device.wait(Some(PATIENCE))? {
                Interrupt::Rang { .. } => {}
                Interrupt::Quiet => return Err("the device stays".into()),
                Interrupt::Gone => break,
            }
        }
        // For good: it does not come to life again.
        assert_eq!(balloon.device.wait(Some(PATIENCE))?, Interrupt::Gone);
        println!("the device is gone");
        // If it was the host, there is nothing to give back; if somebody took the driver from under the open file, the
        // kernel cannot open the channel again before the host offers it anew.
        binding.keep()?;
        return Ok(());
    }
    drop(balloon);
    binding.restore()?;
    println!("the device is back with its driver");
    Ok(())
}
