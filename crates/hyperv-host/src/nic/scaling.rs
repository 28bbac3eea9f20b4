//! Many queues: sub-channels on request, receive side scaling (RSS), and the table that spreads what the guest sends.

use netvsc::nvsp::{
    HostMessage, MessageType, Status as NvspStatus, SubChannelOperation, TABLE_ENTRIES, Version,
};
use netvsc::rndis::Status;
use netvsc::rndis::scaling::{ScalingCapabilities, ScalingChange};
use vmbus::Instant;

use super::policy::SendTable;
use super::queue::Queue;
use super::{Link, NicService, NicServiceError, NicServiceEvent};
use crate::bus::HostChannel;
use crate::switch::{HashTypes, KEY_SIZE, Spread, SwitchPort, Toeplitz};

/// Entries of the host's table for received frames.
pub const RECEIVE_TABLE: usize = 128;

/// Transaction id of the host's SEND_INDIRECTION_TABLE, which asks for no completion.
const TABLE_TRANSACTION: u64 = 0x8000_0000_0000_0002;

/// Queues of one NIC beyond the first.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    /// Sub-channels that the guest was promised and has not let go.
    granted: u16,
    /// Sub-channels that are expected to be open before the table is sent.
    expected: u16,
    /// Further ones to be offered, and when.
    offers: Option<(u16, Instant)>,
    /// The table for what the guest sends has to be sent once all promised sub-channels are open.
    table_due: bool,
    rss: Option<Rss>,
}

/// RSS as the guest set it.
#[derive(Clone, Debug)]
struct Rss {
    enabled: bool,
    types: HashTypes,
    key: [u8; KEY_SIZE],
    table: Vec<u16>,
}

impl Scaling {
    pub(super) fn poll_deadline(&self) -> Option<Instant> {
        self.offers.map(|(_, due)| due)
    }

    /// How frames are spread while RSS is on.
    fn spread(&self) -> Option<Spread> {
        let rss = self.rss.as_ref().filter(|rss| rss.enabled)?;
        let (hash, table) = (Toeplitz::new(&rss.key), rss.table.clone());
        Some(Spread { hash, types: rss.types, table })
    }

    /// Takes RSS parameters; the status of the SET.
    fn set(&mut self, data: &[u8], live_change: bool) -> Status {
        match Rss::read(data, self.rss.as_ref(), self.granted + 1) {
            Err(status) => status,
            Ok(new) => {
                let is_on = self.rss.as_ref().is_some_and(|rss| rss.enabled);
                if is_on && new.enabled && !live_change {
                    return Status::FAILURE;
                }
                self.rss = Some(new);
                Status::SUCCESS
            }
        }
    }
}

impl Rss {
    /// Reads parameters for `queues` queues; parts that are "unchanged" come from `old`.
    fn read(data: &[u8], old: Option<&Self>, queues: u16) -> Result<Self, Status> {
        let change = ScalingChange::decode(data).map_err(|error| {
            tracing::debug!(%error, "scaling parameters refused");
            Status::INVALID_DATA
        })?;
        let empty = Self {
            enabled: false,
            types: HashTypes::empty(),
            key: [0; KEY_SIZE],
            table: vec![0; RECEIVE_TABLE],
        };
        let mut new = old.cloned().unwrap_or(empty);
        let ScalingChange::On { types, key, table } = change else {
            new.enabled = false;
            return Ok(new);
        };
        if let Some(types) = types {
            (new.types, new.enabled) = (types, true);
        }
        new.key = key.unwrap_or(new.key);
        if let Some(table) = table {
            if table.len() > RECEIVE_TABLE || table.iter().any(|entry| *entry >= queues) {
                return Err(Status::INVALID_DATA);
            }
            new.table = table.iter().copied().cycle().take(RECEIVE_TABLE).collect();
        }
        Ok(new)
    }
}

impl Link {
    /// Sub-channels that are open. The primary channel does not count.
    fn open_sub_channels(&self) -> usize {
        self.queues.iter().skip(1).flatten().count()
    }

    /// Frames go to the queues that there are.
    fn apply_spread(&mut self, port: &mut SwitchPort) {
        let mut spread = self.scaling.spread();
        for entry in spread.iter_mut().flat_map(|spread| &mut spread.table) {
            // The primary's place is empty while it is served; it is there all the same.
            if self.queues.get(usize::from(*entry)).is_none_or(Option::is_none) {
                *entry = 0;
            }
        }
        let queues = self.queues.len();
        port.set_queues(u16::try_from(queues).unwrap_or(u16::MAX), spread);
        if let Some(buffer) = &mut self.setup.receive {
            buffer.divide(queues);
        }
    }
}

impl NicService {
    /// What the host can do of RSS: NDIS_RECEIVE_SCALE_CAPABILITIES. None with one queue.
    pub(super) fn scaling_capabilities(&self, version: Option<Version>) -> Result<Vec<u8>, Status> {
        let queues = u32::from(self.config.policy.max_queues);
        if queues < 2 || version < Some(Version::V5) {
            return Err(Status::NOT_SUPPORTED);
        }
        let entries = RECEIVE_TABLE as u16;
        Ok(ScalingCapabilities { interrupts: queues, queues, entries }.encode())
    }

    /// RSS parameters; the status of the SET.
    pub(super) fn set_scaling(
        &self,
        link: &mut Link,
        data: &[u8],
        port: &mut SwitchPort,
    ) -> Status {
        if self.config.policy.max_queues < 2 || link.setup.version < Some(Version::V5) {
            return Status::NOT_SUPPORTED;
        }
        let status = link.scaling.set(data, self.config.policy.live_scaling_change);
        if status == Status::SUCCESS {
            link.apply_spread(port);
        }
        status
    }

    /// The guest asks for more channels.
    pub(super) fn handle_sub_channels(
        &mut self,
        link: &mut Link,
        primary: &mut Queue,
        transaction: u64,
        operation: SubChannelOperation,
        count: u32,
        now: Instant,
    ) -> Result<(), NicServiceError> {
        if operation != SubChannelOperation::ALLOCATE {
            return Err(NicServiceError::SubChannelOperation(operation));
        }
        let policy = &self.config.policy;
        let room = policy.max_queues.max(1) - 1;
        let room = u32::from(room.saturating_sub(link.scaling.granted));
        let operational = link.control.is_operational();
        let granted = match count {
            0 => 0,
            _ if !operational => 0,
            wanted if wanted <= room => wanted,
            _ if policy.grants_fewer => room,
            _ => 0,
        };
        let granted = u16::try_from(granted).unwrap_or(0);
        let status = if granted > 0 { NvspStatus::SUCCESS } else { NvspStatus::FAILURE };
        let answer = HostMessage::SubChannels { status, count: u32::from(granted) };
        primary.answer(&link.setup, transaction, answer)?;
        if granted > 0 {
            let offered = granted.saturating_sub(policy.offers_short);
            let scaling = &mut link.scaling;
            scaling.granted += granted;
            scaling.expected += offered;
            let earlier = scaling.offers.map_or(0, |(count, _)| count);
            scaling.offers = Some((earlier + offered, now + policy.sub_channel_delay));
            scaling.table_due = true;
        }
        Ok(())
    }

    /// Offers sub-channels whose time has come, and sends the table once all are open.
    pub(super) fn poll_sub_channels(
        &mut self,
        link: &mut Link,
        primary: &mut Queue,
        now: Instant,
    ) -> Result<(), NicServiceError> {
        if let Some((count, due)) = link.scaling.offers
            && due <= now
        {
            link.scaling.offers = None;
            if count > 0 {
                self.events.push_back(NicServiceEvent::OfferSubChannels { count });
            }
        }
        let open = link.open_sub_channels();
        if !link.scaling.table_due || open < usize::from(link.scaling.expected) {
            return Ok(());
        }
        link.scaling.table_due = false;
        self.send_table(link, primary)
    }

    /// Sends the table that spreads what the guest sends over the channels that are open.
    fn send_table(&mut self, link: &Link, primary: &mut Queue) -> Result<(), NicServiceError> {
        let open = link.queues.iter().enumerate().filter(|(at, queue)| *at == 0 || queue.is_some());
        let numbers: Vec<_> = open.map(|(at, _)| at as u32).collect();
        let mut table = [0; TABLE_ENTRIES];
        table.iter_mut().zip(numbers.iter().cycle()).for_each(|(entry, number)| *entry = *number);
        let message = HostMessage::IndirectionTable(table).encode(link.setup.message_version());
        let message = match self.config.policy.send_table {
            SendTable::Never => return Ok(()),
            SendTable::Right => message.to_vec(),
            SendTable::WrongOffset => displaced(&message),
        };
        self.counters.send_tables += 1;
        let Queue { channel, outbox, .. } = primary;
        Ok(outbox.send(channel, TABLE_TRANSACTION, false, &message)?)
    }

    /// The guest has opened a sub-channel. Poll afterwards.
    pub fn open_queue(&mut self, number: u16, channel: HostChannel, port: &mut SwitchPort) {
        let Some(link) = &mut self.link else { return };
        let at = usize::from(number);
        if at == 0 || number >= self.config.policy.max_queues {
            return;
        }
        if link.queues.len() <= at {
            link.queues.resize_with(at + 1, || None);
        }
        link.queues[at] = Some(Queue::new(number, channel));
        let open = u16::try_from(link.open_sub_channels()).unwrap_or(u16::MAX);
        link.scaling.expected = link.scaling.expected.max(open);
        link.scaling.table_due = true;
        self.counters.queues_opened += 1;
        link.apply_spread(port);
    }

    /// A sub-channel is closed. What it had on loan is counted as leaked, frames that wait go to other queues, and the
    /// guest gets another table. Poll afterwards.
    pub fn close_queue(&mut self, number: u16, port: &mut SwitchPort) {
        let Some(link) = &mut self.link else { return };
        let place = link.queues.get_mut(usize::from(number)).filter(|_| number > 0);
        if place.and_then(Option::take).is_none() {
            return;
        }
        while link.queues.len() > 1 && link.queues.last().is_some_and(Option::is_none) {
            link.queues.pop();
        }
        if let Some(buffer) = &mut link.setup.receive {
            self.counters.leaked += buffer.reclaim(number);
        }
        link.scaling.expected = link.scaling.expected.saturating_sub(1);
        link.scaling.table_due = true;
        link.apply_spread(port);
    }

    /// The guest has let go of a sub-channel: it may ask for another one.
    pub fn queue_released(&mut self) {
        if let Some(link) = &mut self.link {
            link.scaling.granted = link.scaling.granted.saturating_sub(1);
        }
    }

    /// Channels that are open, the primary one included.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.queues.iter().flatten().count())
    }
}

/// The message with its table where Windows Server 2016 puts it: behind a message of full size, under an offset that
/// says otherwise.
fn displaced(message: &[u8]) -> Vec<u8> {
    debug_assert_eq!(super::setup::kind(message), MessageType::SEND_INDIRECTION_TABLE);
    let (head, table) = message.split_at(message.len().min(12));
    let mut bytes = head.to_vec();
    bytes.resize(Version::V6_1.message_size(), 0);
    bytes.extend_from_slice(table);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters with these flags, hash information, key and table.
    fn parameters(flags: u16, hash: u32, key: &[u8], table: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0x89, 2, 40, 0];
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(hash.to_le_bytes());
        bytes.extend((table.len() as u16 * 4).to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(40u32.to_le_bytes());
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend((40 + table.len() as u32 * 4).to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend(table.iter().flat_map(|entry| entry.to_le_bytes()));
        bytes.extend(key);
        bytes
    }

    const KEY: [u8; KEY_SIZE] = [7; KEY_SIZE];

    #[test]
    fn parameters_are_taken_as_far_as_they_change() {
        let first = Rss::read(&parameters(0, 0x301, &KEY, &[0, 1, 2]), None, 3).unwrap();
        assert!(first.enabled);
        assert_eq!(first.types, HashTypes::IPV4 | HashTypes::TCP_IPV4);
        assert_eq!((first.table.len(), first.key), (RECEIVE_TABLE, KEY));
        assert_eq!(first.table[..7], [0, 1, 2, 0, 1, 2, 0], "a short table is repeated");
        let same = Rss::read(&parameters(2 | 4 | 8, 0, &[], &[]), Some(&first), 3).unwrap();
        assert_eq!((same.enabled, same.types, same.key), (true, first.types, KEY));
        assert_eq!(same.table, first.table);
        let off = Rss::read(&parameters(0x10, 0x301, &[], &[]), Some(&same), 3).unwrap();
        assert!(!off.enabled);
        assert!(!Rss::read(&parameters(0, 0, &[], &[]), Some(&same), 3).unwrap().enabled);
    }

    #[test]
    fn parameters_that_make_no_sense_are_refused() {
        let refused = |bytes: &[u8]| Rss::read(bytes, None, 3).err() == Some(Status::INVALID_DATA);
        let good = parameters(0, 0x301, &KEY, &[0, 1, 2]);
        assert!(!refused(&good));
        assert!(refused(&parameters(0, 0x301, &KEY[1..], &[0])), "a key of 39 bytes");
        assert!(refused(&parameters(0, 0x301, &KEY, &[])), "no table");
        assert!(refused(&parameters(0, 0x301, &KEY, &[0; 129])), "too long");
        assert!(refused(&parameters(0, 0x301, &KEY, &[0, 3])), "a queue that is not");
        assert!(refused(&parameters(0, 0x301, &KEY, &[0x1_0000])), "nor that");
        for (at, value) in [(0, 0x88), (2, 39), (12, 5), (16, 39), (16, 200), (24, 60), (24, 3)] {
            let mut wrong = good.clone();
            wrong[at] = value;
            assert!(refused(&wrong), "byte {at} = {value}");
        }
        for len in 0..good.len() {
            assert!(refused(&good[..len]), "{len} bytes");
        }
    }
}
