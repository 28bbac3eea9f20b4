//! The end of ports over interfaces of the kernel's.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Ports that are being closed, by threads of their own: the kernel waits until nobody looks at a socket any more, which takes it ten
/// milliseconds and more for each, and the frames of the path that is live now are not to wait for that.
#[derive(Clone, Debug, Default)]
pub(super) struct Closing(Arc<Pending>);

#[derive(Debug, Default)]
struct Pending {
    ports: Mutex<usize>,
    fewer: Condvar,
}

/// Counts a port until it is closed, whoever closes it and however that ends.
struct Count(Arc<Pending>);

impl Drop for Count {
    fn drop(&mut self) {
        *self.0.ports.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_all();
    }
}

impl Closing {
    /// Closes a port, without waiting for it; here and now where there can be no thread for it.
    pub(super) fn close(&self, port: Box<dyn Send>) {
        *self.0.ports.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let count = Count(self.0.clone());
        let close = move || {
            drop(port);
            drop(count);
        };
        if let Err(error) = thread::Builder::new().name("close".into()).spawn(close) {
            tracing::debug!(%error, "no thread that closes a port");
        }
    }

    /// Waits until all of them are closed. The next port of an interface may need what the last one had: a queue has one socket.
    pub(super) fn wait(&self) {
        let ports = self.0.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.0.fewer.wait_while(ports, |ports| *ports > 0);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Takes as long to close as somebody lets it.
    struct Slow(Receiver<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.recv().expect("somebody lets it");
        }
    }

    #[test]
    fn nobody_waits_for_a_port_that_closes_but_whoever_wants_to() {
        let closing = Closing::default();
        let (let_first, first) = channel();
        let (let_second, second) = channel();
        closing.close(Box::new(Slow(first)));
        closing.close(Box::new(Slow(second)));
        let (tell, told) = channel();
        let waiter = closing.clone();
        let waits = thread::spawn(move || {
            waiter.wait();
            tell.send(()).expect("somebody listens");
        });
        let_second.send(()).expect("it closes");
        while *closing.0.ports.lock().expect("a count") > 1 {
            thread::yield_now();
        }
        assert!(told.try_recv().is_err(), "one is not closed yet");
        let_first.send(()).expect("it closes");
        told.recv().expect("all are closed");
        waits.join().expect("it ends");
    }
}
