//! What a program that runs on has to do with whoever runs it: it is asked to stop, or to look at its log level again; it says when
//! it is ready, when it stops, and, to a watchdog, that it is alive.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmbus::Instant;

use crate::error::Error;
use crate::log::{Log, LogArgs};
use crate::notify;

/// The service side of a program.
#[derive(Debug)]
pub(crate) struct Service {
    /// Readable after a signal.
    woken: UnixStream,
    stop: Arc<AtomicBool>,
    hang_up: Arc<AtomicBool>,
    log: Log,
    /// How often a watchdog wants to hear, and when next.
    watchdog: Option<(Duration, Instant)>,
}

impl Service {
    /// Takes the signals and begins to log.
    pub(crate) fn start(args: &LogArgs) -> Result<Self, Error> {
        let system = |source| Error::System { doing: "watch for signals", source };
        let log = Log::start(args)?;
        let (woken, wake) = UnixStream::pair().map_err(system)?;
        woken.set_nonblocking(true).map_err(system)?;
        let (stop, hang_up) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        for (signal, flag) in [(SIGINT, &stop), (SIGTERM, &stop), (SIGHUP, &hang_up)] {
            // In this order: whoever is woken finds the flag set.
            signal_hook::flag::register(signal, flag.clone()).map_err(system)?;
            let end = wake.try_clone().map_err(system)?;
            signal_hook::low_level::pipe::register(signal, end).map_err(system)?;
        }
        // Twice as often as somebody would lose patience.
        let watchdog = notify::watchdog().map(|patience| (patience / 2, Instant::ZERO));
        Ok(Self { woken, stop, hang_up, log, watchdog })
    }

    /// The service does what it is for.
    pub(crate) fn ready(&self) {
        notify::ready();
    }

    /// The service is about to end.
    pub(crate) fn stopping(&self) {
        notify::stopping();
    }

    /// Does what is due at `now`, and says whether the program was asked to stop.
    pub(crate) fn asked_to_stop(&mut self, now: Instant) -> bool {
        while matches!((&self.woken).read(&mut [0; 16]), Ok(count) if count > 0) {}
        if self.hang_up.swap(false, Ordering::Relaxed) {
            self.log.reload();
        }
        if let Some((every, next)) = &mut self.watchdog
            && *next <= now
        {
            notify::alive();
            *next = now + *every;
        }
        self.stop.load(Ordering::Relaxed)
    }

    /// When to call [`Service::asked_to_stop`] at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|(_, next)| next)
    }
}

impl AsFd for Service {
    /// Readable after a signal.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }
}
