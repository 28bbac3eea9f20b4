//! The end of an input: nothing may be left.

use vmbus::Platform;
use vmbus::bus::BusState;
use vmbus::message::{Payload, UnloadResponse, VersionFeatures, VersionResponse};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::World;

impl World {
    /// Waits until all that is awaited is overdue, and says good-bye.
    pub(super) fn finish(mut self) {
        assert!(self.bus.shared_pages() <= self.ram.allocated(), "what the host knows is kept");
        for _ in 0..10_000 {
            let Some(due) = self.bus.poll_deadline() else { break };
            self.now = self.now.max(due);
            self.driver.pass(&mut self.bus, self.now);
        }
        self.driver.check(&self.bus);
        self.driver.check_waits(&self.bus);
        while let Some(post) = self.bus.poll_outgoing() {
            self.driver.posted(&post.payload);
        }
        self.driver.check_released();
        self.farewell();
        let Self { ram, bus, host, services, .. } = self;
        drop((services, host));
        // What is left belongs to the next contact.
        assert!(ram.allocated() <= 2, "{} pages are lost", ram.allocated());
        drop(bus);
        assert_eq!(ram.allocated(), 0, "pages are lost");
        assert!(ram.allocate(1).is_ok());
    }

    /// Ends the connection, makes contact once more, and ends that: with a host that answers.
    fn farewell(&mut self) {
        self.unload();
        if self.bus.state() == BusState::Idle && self.driver.start(&mut self.bus, self.now).is_err()
        {
            return;
        }
        // Hosts say yes to the version that they are asked for.
        let body = VersionResponse {
            supported: 1,
            state: 0,
            reserved: U16::new(0),
            connection: U32::new(0x40),
        };
        let features = VersionFeatures { features: U32::new(0) };
        self.tell(&Payload::new(&body).with(features.as_bytes()));
        self.driver.hear(&mut self.bus);
        assert_eq!(self.bus.state(), BusState::OffersRequested);
        assert_eq!(self.bus.shared_pages(), 0, "contact makes a host forget");
        self.unload();
        assert_eq!(self.bus.state(), BusState::Idle);
        assert_eq!(self.bus.shared_pages(), 0);
        assert_eq!(self.bus.revealed_pages(), 0, "what came back is concealed");
        assert_eq!(self.bus.poll_deadline(), None);
        assert_eq!(self.bus.poll_event(), None);
    }

    fn unload(&mut self) {
        self.driver.unload(&mut self.bus, self.now);
        if self.bus.state() == BusState::Unloading {
            self.tell(&Payload::new(&UnloadResponse {}));
            self.driver.hear(&mut self.bus);
            assert_eq!(self.bus.state(), BusState::Idle);
            assert_eq!(self.bus.shared_pages(), 0, "a host that has said good-bye forgets");
        }
        self.driver.hear(&mut self.bus);
    }
}
