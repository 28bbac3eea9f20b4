//! A patch cable between two TAP interfaces: hands each frame of either to the other, and does nothing else. What goes through it
//! costs what TAPs cost anybody who is behind one.
//!
//! ```text
//! tap_patch [--plain] NAME NAME
//! ```
//!
//! Frames come as the kernel has them, long segments and open checksums included; with `--plain` as they would go over a wire. It ends when
//! it is killed, and what it created goes with it.

use std::error::Error;

use netvsc_linux::{Offloaded, Tap, TapError, TapName};
use rustix::event::{PollFd, PollFlags, poll};

/// Longest frame: a segment of 64 KiB with its headers, and one byte more.
const BUFFER: usize = 65_536 + 64;
/// Frames handed on before the other direction gets its turn.
const BURST: usize = 64;

/// One end, and what came out of it and found no room at the other.
struct End {
    tap: Tap,
    plain: bool,
    buffer: Vec<u8>,
    held: Option<(usize, Offloaded)>,
}

impl End {
    fn open(name: &str, plain: bool) -> Result<Self, Box<dyn Error>> {
        let name: TapName = name.parse()?;
        let tap = if plain { Tap::open(&name)? } else { Tap::open_with_offloads(&name)? };
        Ok(Self { tap, plain, buffer: vec![0; BUFFER], held: None })
    }

    fn next(&mut self) -> Result<Option<(usize, Offloaded)>, TapError> {
        if let held @ Some(_) = self.held.take() {
            return Ok(held);
        }
        if self.plain {
            let read = self.tap.read_frame(&mut self.buffer)?;
            return Ok(read.map(|len| (len, Offloaded::Done)));
        }
        self.tap.read_offloaded(&mut self.buffer)
    }

    /// Hands on a burst to `other`.
    fn hand_on(&mut self, other: &Self) -> Result<bool, TapError> {
        let mut moved = false;
        for _ in 0..BURST {
            let Some((len, left)) = self.next()? else { break };
            let frame = self.buffer.get(..len).unwrap_or_default();
            let written = if self.plain {
                other.tap.write_frame(frame)
            } else {
                other.tap.write_offloaded(frame, &left)
            };
            match written {
                Ok(true) => moved = true,
                Ok(false) => {
                    self.held = Some((len, left));
                    break;
                }
                // A cable that is not plugged in at its other end.
                Err(TapError::Down { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let all = names.len();
    names.retain(|name| name != "--plain");
    let [one, other] = &names[..] else {
        return Err("expected two names of TAP interfaces".into());
    };
    let plain = names.len() < all;
    let (mut one, mut other) = (End::open(one, plain)?, End::open(other, plain)?);
    loop {
        if one.hand_on(&other)? | other.hand_on(&one)? {
            continue;
        }
        let wants = |mine: &End, its: &End| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, mine.held.is_none());
            flags.set(PollFlags::OUT, its.held.is_some());
            flags
        };
        let flags = [wants(&one, &other), wants(&other, &one)];
        let ends = [one.tap.queue(0), other.tap.queue(0)];
        poll(&mut [PollFd::new(&ends[0], flags[0]), PollFd::new(&ends[1], flags[1])], None)?;
    }
}
