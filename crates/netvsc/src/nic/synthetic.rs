//! The NIC as the [`Adapter`](crate::adapter::Adapter) sees it.

use vmbus::Instant;
use vmbus::channel::Doorbell;

use super::{
    Lending, Nic, NicError, NicEvent, PagedFrame, Returned, RxFrame, TransmitError, TxFrame,
};
use crate::adapter::{Frame, Refused, Sign, Synthetic};
use crate::port::{Path, PathOffloads, PortSettings};
use crate::rndis::offload::{IpOffloads, OffloadCapabilities};
use crate::rndis::packet::ReceiveChecksum;

pub(super) fn refused(error: TransmitError) -> Refused {
    match error {
        TransmitError::Full(lack) => Refused::Full(lack),
        // A NIC that failed may be replaced or started anew, and the frame go out then.
        TransmitError::NotReady | TransmitError::Failed(_) => Refused::NotReady,
        TransmitError::TooShort(_)
        | TransmitError::TooLong { .. }
        | TransmitError::LargeSend { .. }
        | TransmitError::Options { .. }
        | TransmitError::Segments { .. }
        | TransmitError::Headers { .. }
        | TransmitError::Pages(_) => Refused::Never,
    }
}

impl Frame for RxFrame<'_> {
    fn len(&self) -> usize {
        RxFrame::len(self)
    }

    fn copy_to(&self, out: &mut [u8]) -> usize {
        RxFrame::copy_to(self, out)
    }

    fn checksum(&self) -> ReceiveChecksum {
        RxFrame::checksum(self)
    }

    fn hash(&self) -> Option<u32> {
        RxFrame::hash(self)
    }
}

impl<D: Doorbell> Synthetic for Nic<D> {
    type Event = NicEvent;
    type Error = NicError;

    fn poll(&mut self, now: Instant, sink: &mut dyn FnMut(&dyn Frame)) -> Result<(), NicError> {
        Nic::poll(self, now, &mut |frame| sink(&frame))
    }

    fn poll_event(&mut self) -> Option<NicEvent> {
        Nic::poll_event(self)
    }

    fn sign(event: &NicEvent) -> Option<Sign> {
        match *event {
            NicEvent::Ready { .. } => Some(Sign::Ready),
            NicEvent::Failed(_) | NicEvent::Stopped => Some(Sign::Closed),
            NicEvent::Associated { .. } => Some(Sign::Associated),
            NicEvent::SwitchCompleted { path } => Some(Sign::SwitchCompleted(path)),
            NicEvent::HostSwitched { path } => Some(Sign::HostSwitched(path)),
            NicEvent::Disassociated { .. } => Some(Sign::Disassociated),
            NicEvent::Link { .. }
            | NicEvent::Set { .. }
            | NicEvent::Reset { .. }
            | NicEvent::QueuesGranted { .. }
            | NicEvent::SendTable
            | NicEvent::Overdue { .. } => None,
        }
    }

    fn poll_deadline(&self) -> Option<Instant> {
        Nic::poll_deadline(self)
    }

    fn transmit(&mut self, frame: &[u8]) -> Result<(), Refused> {
        Nic::transmit(self, frame).map_err(refused)
    }

    fn transmit_with(&mut self, frame: &TxFrame<'_>) -> Result<(), Refused> {
        Nic::transmit_with(self, frame).map_err(refused)
    }

    fn transmit_pages(&mut self, frame: &PagedFrame<'_>) -> Result<Lending, Refused> {
        Nic::transmit_pages(self, frame).map_err(refused)
    }

    fn poll_returned(&mut self) -> Option<Returned> {
        Nic::poll_returned(self)
    }

    fn offloads(&self) -> PathOffloads {
        let limit = |mut offloads: IpOffloads| {
            offloads.large_send = offloads.large_send.min(self.info.large_send);
            offloads
        };
        let OffloadCapabilities { ipv4, ipv6, large_send_ipv6 } = self.info.offloads;
        PathOffloads { ipv4: limit(ipv4), ipv6: limit(ipv6), large_send_ipv6, vlan: true }
    }

    fn settings(&self) -> Option<PortSettings> {
        let settings = PortSettings { mtu: self.info.mtu, filter: self.config.filter };
        self.info.ready.then_some(settings)
    }

    fn flush(&mut self) {
        Nic::flush(self);
    }

    fn is_idle(&self) -> bool {
        self.transmit.is_idle()
    }

    fn switch_data_path(&mut self, path: Path, now: Instant) {
        Nic::switch_data_path(self, path, now);
    }
}
