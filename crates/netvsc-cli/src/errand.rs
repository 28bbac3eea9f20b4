//! A transfer whose two ends are in two processes: an [`Errand`] in one, a [`Service`] in the other.
//!
//! The errand calls the service and says what it wants: to have so many bytes taken, or to get so many that follow from a seed.
//! After the last byte the service says which SHA-256 they had at its end.

use netvsc::MacAddress;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use sha2::{Digest, Sha256};
use smoltcp::socket::tcp;
use smoltcp::wire::Ipv4Address;
use vmbus::Instant;

use crate::error::Error;
use crate::transfer::{Endpoint, PORT, Source, stack_error};

/// Bytes of what an errand says first: [`MAGIC`], the direction, the size and the seed, 8 bytes each.
const ORDER: usize = 32;
const MAGIC: [u8; 8] = *b"netvsc-1";
const TAKE: u64 = 0;
const GIVE: u64 = 1;
/// Bytes of a SHA-256.
const DIGEST: usize = 32;

/// Address of the stack on this side (1) or the other (2) of NIC number `nic`.
#[must_use]
pub const fn address(nic: usize, side: u8) -> Ipv4Address {
    Ipv4Address::new(10, 0, nic as u8, side)
}

/// MAC of the service's stack behind NIC number `nic`.
#[must_use]
pub const fn service_mac(nic: usize) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, 1, nic as u8])
}

fn order(direction: u64, size: u64, seed: u64) -> [u8; ORDER] {
    let mut bytes = [0; ORDER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&direction.to_le_bytes());
    bytes[16..24].copy_from_slice(&size.to_le_bytes());
    bytes[24..].copy_from_slice(&seed.to_le_bytes());
    bytes
}

/// What there is to send.
#[derive(Debug)]
enum Supply {
    Source(Source),
    Nothing,
}

/// The end that wants something.
#[derive(Debug)]
pub struct Errand {
    order: Vec<u8>,
    supply: Supply,
    /// Bytes that are still to come, before the digest.
    coming: u64,
    total: u64,
    moved: u64,
    ours: Sha256,
    theirs: Vec<u8>,
}

impl Errand {
    /// Calls the service at `address` and has it take `source`.
    ///
    /// # Errors
    /// If the endpoint has a connection already.
    pub fn deliver(
        source: Source,
        endpoint: &mut Endpoint,
        address: Ipv4Address,
    ) -> Result<Self, Error> {
        let total = source.left();
        endpoint.connect(address)?;
        Ok(Self {
            order: order(TAKE, total, 0).to_vec(),
            supply: Supply::Source(source),
            coming: 0,
            total,
            moved: 0,
            ours: Sha256::new(),
            theirs: Vec::new(),
        })
    }

    /// Calls the service at `address` and gets `size` bytes that follow from `seed`.
    ///
    /// # Errors
    /// If the endpoint has a connection already.
    pub fn fetch(
        size: u64,
        seed: u64,
        endpoint: &mut Endpoint,
        address: Ipv4Address,
    ) -> Result<Self, Error> {
        endpoint.connect(address)?;
        Ok(Self {
            order: order(GIVE, size, seed).to_vec(),
            supply: Supply::Nothing,
            coming: size,
            total: size,
            moved: 0,
            ours: Sha256::new(),
            theirs: Vec::new(),
        })
    }

    /// Moves what can be moved. True if anything did.
    ///
    /// # Errors
    /// If the source cannot be read or the connection is lost.
    pub fn step(&mut self, endpoint: &mut Endpoint) -> Result<bool, Error> {
        if self.done() {
            return Ok(false);
        }
        let mut moved = false;
        let socket = endpoint.socket();
        while !self.order.is_empty() && socket.can_send() {
            let sent = socket.send_slice(&self.order).map_err(stack_error)?;
            self.order.drain(..sent);
            moved = true;
        }
        if let Supply::Source(source) = &mut self.supply {
            while self.order.is_empty() && source.left() > 0 && socket.can_send() {
                let digest = &mut self.ours;
                let count = socket.send(|room| match source.read(room) {
                    Ok(count) => {
                        digest.update(&room[..count]);
                        (count, Ok(count))
                    }
                    Err(error) => (0, Err(error)),
                });
                self.moved += count.map_err(stack_error)?? as u64;
                moved = true;
            }
        }
        while socket.can_recv() && !self.done() {
            let (digest, theirs, coming) = (&mut self.ours, &mut self.theirs, self.coming);
            let (data, answer) = socket
                .recv(|bytes| {
                    let data = bytes.len().min(usize::try_from(coming).unwrap_or(usize::MAX));
                    let (data, rest) = bytes.split_at(data);
                    let answer = &rest[..rest.len().min(DIGEST - theirs.len())];
                    digest.update(data);
                    theirs.extend_from_slice(answer);
                    (data.len() + answer.len(), (data.len(), answer.len()))
                })
                .map_err(stack_error)?;
            self.coming -= data as u64;
            self.moved += data as u64;
            moved |= data + answer > 0;
        }
        if self.done() {
            socket.close();
        } else if socket.state() == tcp::State::Closed {
            return Err(Error::Run(format!(
                "a TCP connection was lost after {} bytes",
                self.moved
            )));
        }
        Ok(moved)
    }

    /// Whether the service has said which digest it has.
    #[must_use]
    pub fn done(&self) -> bool {
        self.theirs.len() == DIGEST
    }

    /// Whether both ends have seen the same bytes.
    #[must_use]
    pub fn digest_ok(&self) -> bool {
        self.done() && self.moved == self.total && *self.ours.clone().finalize() == *self.theirs
    }

    /// Bytes that went into the connection, or came out of it, and how many there are.
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        (self.moved, self.total)
    }

    /// SHA-256 at this end.
    #[must_use]
    pub fn digest(&self) -> String {
        self.ours.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a service is about.
#[derive(Debug)]
enum Job {
    Reading { order: Vec<u8> },
    Taking { left: u64, digest: Box<Sha256> },
    Giving { random: Box<Xoshiro256PlusPlus>, left: u64, digest: Box<Sha256> },
    Answering { answer: Vec<u8> },
    Over,
}

/// The end that does what errands want, one after the other.
#[derive(Debug)]
pub struct Service {
    endpoint: Endpoint,
    job: Job,
}

impl Service {
    /// A service on a stack of its own.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, job: Job::Over }
    }

    /// The stack.
    pub fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Does all that can be done at `now`.
    pub fn poll(&mut self, now: Instant) {
        self.endpoint.poll(now);
        if self.step() {
            self.endpoint.poll(now);
        }
    }

    /// True if there is something to send. What the other end does wrong ends its connection.
    fn step(&mut self) -> bool {
        let socket = self.endpoint.socket();
        if !socket.is_open() {
            self.job = Job::Reading { order: Vec::new() };
            // A closed socket can listen.
            let _ = socket.listen(PORT);
            return false;
        }
        let mut moved = false;
        while Self::work(&mut self.job, socket) {
            moved = true;
        }
        if matches!(socket.state(), tcp::State::CloseWait) && !socket.can_recv() {
            // The other end has said all it wanted to; so has this one, or it never will.
            socket.close();
            self.job = Job::Over;
            moved = true;
        }
        moved
    }

    fn work(job: &mut Job, socket: &mut tcp::Socket<'_>) -> bool {
        match job {
            Job::Reading { order } => {
                let wanted = ORDER - order.len();
                let Some(count) = take(socket, wanted, |bytes| order.extend_from_slice(bytes))
                else {
                    return false;
                };
                if order.len() == ORDER {
                    match Self::understand(order) {
                        Some(next) => *job = next,
                        None => {
                            socket.abort();
                            *job = Job::Over;
                        }
                    }
                }
                count > 0
            }
            Job::Taking { left, digest } => {
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX);
                let taken = take(socket, wanted, |bytes| digest.update(bytes));
                *left -= taken.unwrap_or(0) as u64;
                if *left == 0 {
                    *job = Job::Answering { answer: digest.clone().finalize().to_vec() };
                    return true;
                }
                taken.is_some()
            }
            Job::Giving { random, left, digest } => {
                let given = socket.can_send().then(|| {
                    socket.send(|room| {
                        let count = room.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                        let room = &mut room[..count];
                        random.fill_bytes(room);
                        digest.update(&*room);
                        (count, count)
                    })
                });
                let given = given.and_then(Result::ok);
                *left -= given.unwrap_or(0) as u64;
                if *left == 0 {
                    *job = Job::Answering { answer: digest.clone().finalize().to_vec() };
                    return true;
                }
                given.is_some()
            }
            Job::Answering { answer } => {
                let sent = socket.can_send().then(|| socket.send_slice(answer));
                let sent = sent.and_then(Result::ok).unwrap_or(0);
                answer.drain(..sent);
                if answer.is_empty() {
                    *job = Job::Over;
                }
                sent > 0
            }
            Job::Over => take(socket, usize::MAX, |_| {}).is_some(),
        }
    }

    fn understand(order: &[u8]) -> Option<Job> {
        let word = |at: usize| Some(u64::from_le_bytes(*order.get(at..)?.first_chunk()?));
        let (left, seed) = (word(16)?, word(24)?);
        let digest = Box::new(Sha256::new());
        match (order.get(..8)? == MAGIC, word(8)?) {
            (true, TAKE) => Some(Job::Taking { left, digest }),
            (true, GIVE) => {
                let random = Box::new(Xoshiro256PlusPlus::seed_from_u64(seed));
                Some(Job::Giving { random, left, digest })
            }
            _ => None,
        }
    }
}

/// Takes up to `most` bytes; how many, or `None` if there are none.
fn take(socket: &mut tcp::Socket<'_>, most: usize, mut each: impl FnMut(&[u8])) -> Option<usize> {
    if most == 0 || !socket.can_recv() {
        return None;
    }
    let taken = socket.recv(|bytes| {
        let bytes = &bytes[..bytes.len().min(most)];
        each(bytes);
        (bytes.len(), bytes.len())
    });
    taken.ok().filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(nic_mac: u8, side: u8) -> Endpoint {
        let mac = MacAddress([2, 0, 0, 0, 0, nic_mac]);
        Endpoint::new(mac, address(0, side), u64::from(side), Instant::ZERO)
    }

    /// Carries frames between the two until `done`; every `lose`th is lost, if that is not 0.
    fn run(
        client: &mut Endpoint,
        service: &mut Service,
        now: &mut Instant,
        lose: usize,
        mut step: impl FnMut(&mut Endpoint) -> bool,
    ) {
        let mut count = 0;
        loop {
            let done = step(client);
            client.poll(*now);
            service.poll(*now);
            let mut moved = false;
            while let Some(frame) = client.front().map(<[u8]>::to_vec) {
                client.pop();
                count += 1;
                if lose == 0 || count % lose != 0 {
                    service.endpoint().push(|buffer| buffer.extend_from_slice(&frame));
                }
                moved = true;
            }
            while let Some(frame) = service.endpoint().front().map(<[u8]>::to_vec) {
                service.endpoint().pop();
                client.push(|buffer| buffer.extend_from_slice(&frame));
                moved = true;
            }
            if done && !moved {
                return;
            }
            if !moved {
                let at =
                    vmbus::time::earliest(client.deadline(*now), service.endpoint().deadline(*now));
                *now = at.expect("a deadline");
            }
        }
    }

    #[test]
    fn errands_are_done_one_after_the_other_in_either_direction() {
        let mut now = Instant::ZERO;
        let mut service = Service::new(stack(2, 2));
        for (number, (upload, lose)) in
            [(true, 0), (false, 0), (true, 40), (false, 40)].into_iter().enumerate()
        {
            let mut client = stack(3 + number as u8, 3 + number as u8);
            let size = 700_001 + number as u64;
            let mut errand = if upload {
                Errand::deliver(Source::seeded(7, size), &mut client, address(0, 2)).unwrap()
            } else {
                Errand::fetch(size, 7, &mut client, address(0, 2)).unwrap()
            };
            run(&mut client, &mut service, &mut now, lose, |client| {
                errand.step(client).unwrap();
                errand.done()
            });
            assert!(errand.digest_ok(), "{upload} {lose}");
            assert_eq!(errand.progress(), (size, size));
        }
    }

    #[test]
    fn nothing_is_an_errand_too() {
        let mut now = Instant::ZERO;
        let mut service = Service::new(stack(2, 2));
        let mut client = stack(1, 1);
        let mut errand = Errand::deliver(Source::seeded(7, 0), &mut client, address(0, 2)).unwrap();
        run(&mut client, &mut service, &mut now, 0, |client| {
            errand.step(client).unwrap();
            errand.done()
        });
        assert!(errand.digest_ok() && errand.digest().starts_with("e3b0c442"));
    }

    #[test]
    fn another_digest_is_not_ours() {
        let errand = Errand {
            order: Vec::new(),
            supply: Supply::Nothing,
            coming: 0,
            total: 0,
            moved: 0,
            ours: Sha256::new(),
            theirs: vec![0; DIGEST],
        };
        assert!(errand.done() && !errand.digest_ok());
    }

    #[test]
    fn what_is_no_order_is_not_understood() {
        assert!(Service::understand(&order(TAKE, 1, 2)).is_some());
        assert!(Service::understand(&order(GIVE, 1, 2)).is_some());
        assert!(Service::understand(&order(2, 1, 2)).is_none());
        let mut other = order(TAKE, 1, 2);
        other[0] = b'N';
        assert!(Service::understand(&other).is_none());
    }
}
