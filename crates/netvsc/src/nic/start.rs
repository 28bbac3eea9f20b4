//! The way up, to the first RNDIS message (PROTOCOL §7.3).

use vmbus::channel::Doorbell;

use super::pages::{MOST_RANGES, PagesError};
use super::receive::RECEIVE_BUFFER_ID;
use super::types::ETHERNET_HEADER;
use super::{Nic, NicError, Stage, Step};
use crate::nvsp::{Capabilities, GuestMessage, HostMessage, MessageType, Status, Version};

/// The number of the send buffer. Any would do; Linux takes this one.
pub(super) const SEND_BUFFER_ID: u16 = 0;

impl<D: Doorbell> Nic<D> {
    /// Offers the first version from place `from` of the list that this guest may speak. `refused` is how the last one was
    /// refused.
    pub(super) fn negotiate(
        &mut self,
        from: usize,
        refused: Option<(Version, Status)>,
    ) -> Result<(), NicError> {
        let mut rest = self.config.versions.iter().enumerate().skip(from);
        let next = rest.find(|(_, version)| self.config.allows(**version));
        let Some((place, version)) = next.map(|(place, version)| (place, *version)) else {
            let (last, status) = refused.unwrap_or((Version(0), Status::NONE));
            return Err(NicError::VersionsRefused { last, status });
        };
        self.stage = Stage::Negotiating(place);
        let init = GuestMessage::Init { min: version, max: version };
        self.ask(Step::Version(version), &init, version);
        Ok(())
    }

    /// The completion of a start-up message.
    pub(super) fn handle_answer(&mut self, step: Step, payload: &[u8]) -> Result<(), NicError> {
        if matches!(self.stage, Stage::Stopping(_)) {
            return Ok(());
        }
        let answer = HostMessage::decode(payload, self.version())
            .map_err(|error| NicError::BadAnswer { step, error })?;
        self.stats.answered(&answer);
        match (step, answer) {
            (Step::Version(version), HostMessage::InitComplete { status, max_mdl_chain, .. }) => {
                if status == Status::SUCCESS {
                    self.count_ranges(max_mdl_chain);
                    self.configure(version);
                    return Ok(());
                }
                let Stage::Negotiating(place) = self.stage else { return Ok(()) };
                self.negotiate(place + 1, Some((version, status)))
            }
            (
                Step::ReceiveBuffer,
                HostMessage::ReceiveBufferComplete { status, sections, first },
            ) => {
                check(step, status)?;
                self.receive.divide(sections, first)?;
                self.link.expect_pieces(self.receive.pieces());
                self.send_buffer();
                Ok(())
            }
            (Step::SendBuffer, HostMessage::SendBufferComplete { status, section_size }) => {
                check(step, status)?;
                self.transmit.divide(section_size, self.config.mtu, self.version())?;
                self.initialize();
                Ok(())
            }
            _ => {
                let found = payload.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind));
                Err(NicError::WrongAnswer { step, found: MessageType(found) })
            }
        }
    }

    /// The host takes so many pieces of memory with one packet. One of them is the section with the headers.
    fn count_ranges(&mut self, chain: u32) {
        let ranges = chain.saturating_sub(1) as usize;
        let lending = if self.config.isolated {
            Err(PagesError::Isolated)
        } else if self.transmit.buffer.pages.frames().is_empty() {
            Err(PagesError::NoFrameNumbers)
        } else {
            Ok(ranges.min(MOST_RANGES))
        };
        self.transmit.allow_lending(lending, self.config.lend_from);
        self.info.page_ranges = lending.map_or(0, |ranges| ranges as u16);
    }

    /// A version is agreed on: what the guest can do, and the receive buffer.
    fn configure(&mut self, version: Version) {
        self.info.version = Some(version);
        if version >= Version::V2 {
            // Linux says so only from version 5 on.
            let vf = self.config.wants_vf() && version >= Version::V5;
            let mut capabilities = Capabilities::IEEE8021Q;
            capabilities.set(Capabilities::SRIOV, vf);
            // Without it hosts do not tell of another link speed.
            capabilities.set(Capabilities::TEAMING, version >= Version::V5);
            capabilities.set(Capabilities::RSC, self.config.coalesces(version));
            let config = GuestMessage::NdisConfig {
                mtu: self.config.mtu + ETHERNET_HEADER as u32,
                capabilities,
            };
            self.link.tell(config.encode(version));
        }
        let (major, minor) = version.ndis();
        self.link.tell(GuestMessage::NdisVersion { major, minor }.encode(version));
        let gpadl = self.receive.buffer.gpadl;
        let buffer = GuestMessage::ReceiveBuffer { gpadl, id: RECEIVE_BUFFER_ID };
        self.stage = Stage::ReceiveBuffer;
        self.receive.given = true;
        self.ask(Step::ReceiveBuffer, &buffer, version);
    }

    fn send_buffer(&mut self) {
        let gpadl = self.transmit.buffer.gpadl;
        let buffer = GuestMessage::SendBuffer { gpadl, id: SEND_BUFFER_ID };
        self.stage = Stage::SendBuffer;
        self.transmit.given = true;
        self.ask(Step::SendBuffer, &buffer, self.version());
    }
}

fn check(step: Step, status: Status) -> Result<(), NicError> {
    if status == Status::SUCCESS { Ok(()) } else { Err(NicError::Refused { step, status }) }
}
