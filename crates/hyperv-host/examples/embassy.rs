//! embassy-net on a NIC: one task runs the card, one the stack, and one fetches a page from behind the virtual switch.
//!
//! `cargo run -p hyperv-host --example embassy` ends when it has the page. No task is polled that nobody woke, and time goes on only when all of them sleep.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

// Puts the clock's critical sections into the program.
use critical_section as _;
use embassy_net::tcp::TcpSocket;
use embassy_net::{Ipv4Address, Ipv4Cidr, Stack, StackResources, StaticConfigV4};
use embassy_time::{MockDriver, Timer};
use netvsc::stack::embassy::Runner;
use netvsc::stack::{Device, FramesConfig};
use netvsc::{Nic, NicEvent};
use vmbus::Instant;

mod bare_world;
use bare_world::{BareWorld, PAGE};

type Failure = Box<dyn Error>;

const OURS: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const THEIRS: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);

/// What an interrupt of the host does: it wakes the task that waits for it.
#[derive(Default)]
struct Interrupt {
    rang: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Interrupt {
    fn ring(&self) {
        self.rang.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.rang.take() {
            return Poll::Ready(());
        }
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }
}

fn now() -> Instant {
    Instant::ZERO + std::time::Duration::from_micros(embassy_time::Instant::now().as_micros())
}

/// Moves the card's frames, and hears what it has to say.
async fn run_card(mut runner: Runner<Nic>, interrupt: Rc<Interrupt>) -> Result<(), Failure> {
    loop {
        runner.poll(now())?;
        while let Some(event) = runner.poll_event() {
            if let NicEvent::Ready { mac, .. } = event {
                println!("the card is ready; its address is {mac}");
                runner.frames().with(|frames| frames.set_mac(mac));
            }
        }
        let mut timer = runner.poll_deadline().map(|at| {
            let micros = at.as_nanos().div_ceil(1000);
            Timer::at(embassy_time::Instant::from_micros(micros))
        });
        poll_fn(|context| {
            let rang = interrupt.poll(context).is_ready();
            let queued = runner.poll_queued(context).is_ready();
            let due = timer.as_mut().is_some_and(|timer| Pin::new(timer).poll(context).is_ready());
            if rang || queued || due { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Gets the page as soon as there is a link.
async fn fetch(stack: Stack<'static>) -> Result<(), Failure> {
    let (mut received, mut sent) = ([0; 4096], [0; 4096]);
    let mut socket = TcpSocket::new(stack, &mut received, &mut sent);
    if stack.is_link_up() {
        return Err("a link before the card is ready".into());
    }
    stack.wait_link_up().await;
    socket.connect((THEIRS, 80)).await.map_err(|error| format!("{error:?}"))?;
    let mut page = Vec::new();
    loop {
        let mut bytes = [0; 512];
        match socket.read(&mut bytes).await.map_err(|error| format!("{error:?}"))? {
            0 => break,
            count => page.extend_from_slice(&bytes[..count]),
        }
    }
    println!("{} bytes from {THEIRS}", page.len());
    if page == PAGE.repeat(1000).as_bytes() { Ok(()) } else { Err("another page".into()) }
}

/// Set when a task is woken.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// A task, and whether it is to be polled.
struct Task {
    future: Pin<Box<dyn Future<Output = Result<(), Failure>>>>,
    woken: Arc<Flag>,
}

impl Task {
    fn new(future: impl Future<Output = Result<(), Failure>> + 'static) -> Self {
        Self { future: Box::pin(future), woken: Arc::new(Flag(AtomicBool::new(true))) }
    }

    /// `None` if nobody woke it.
    fn run(&mut self) -> Option<Poll<Result<(), Failure>>> {
        let woken = self.woken.0.swap(false, Ordering::Acquire);
        let waker = Waker::from(self.woken.clone());
        woken.then(|| self.future.as_mut().poll(&mut Context::from_waker(&waker)))
    }
}

fn main() -> Result<(), Failure> {
    let (mut world, nic) = BareWorld::new(THEIRS)?;
    let (runner, driver) = Device::new(nic, FramesConfig::default()).split();
    let address = StaticConfigV4 {
        address: Ipv4Cidr::new(OURS, 24),
        gateway: None,
        dns_servers: Default::default(),
    };
    let resources = Box::leak(Box::new(StackResources::<3>::new()));
    let config = embassy_net::Config::ipv4_static(address);
    let (stack, mut stack_runner) = embassy_net::new(driver, config, resources, 1);

    let interrupt = Rc::new(Interrupt::default());
    let mut tasks = [
        Task::new(run_card(runner, interrupt.clone())),
        Task::new(async move { stack_runner.run().await }),
        Task::new(fetch(stack)),
    ];
    while now() < Instant::ZERO + std::time::Duration::from_secs(60) {
        let mut busy = false;
        for (at, task) in tasks.iter_mut().enumerate() {
            match task.run() {
                Some(Poll::Ready(result)) => {
                    assert!(at == 2 || result.is_err(), "the other two run for ever");
                    return result;
                }
                polled => busy |= polled.is_some(),
            }
        }
        busy |= world.poll(now())?;
        if world.to_guest.take() {
            interrupt.ring();
        } else if !busy {
            MockDriver::get().advance(embassy_time::Duration::from_micros(100));
        }
    }
    Err("not done after a minute".into())
}
