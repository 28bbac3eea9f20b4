//! Received bytes taken apart, with every illegal case told apart.
//!
//! A ring pads messages to 8 bytes, so a received message may be up to seven bytes longer than it was sent; a message
//! is refused when it is too short, never when it is too long.

use vmbus::Serial;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    AssignedResources, BARS, Block, D0Entry, DeleteInterrupt, Description1, Description2,
    FLAG_NUMA, InvalidateBlock, MAX_ASSIGNED, MAX_BLOCK, MAX_FUNCTIONS, MSI3_STRIDE, MessageType,
    Msi1, Msi2, PowerStateChange, QueryVersion, RelationsHeader, RemappedMsi, Resource, Sender,
    Slotted, Tdisp, Version, info,
};
use crate::slot::{BadSlot, Slot};

/// A message that cannot be used. It costs that message; the bus goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not even a type.
    #[error("message of {0} bytes: expected at least 4 for the type")]
    NoType(usize),
    /// A type that the protocol does not have.
    #[error("message type {0:?} is not one of 0x42490000 to 0x4249001d")]
    UnknownType(MessageType),
    /// A type that only the receiving side may send.
    #[error("{0:?} is for the other side to send")]
    WrongSide(MessageType),
    /// A known type with too few bytes.
    #[error("{kind:?} of {len} bytes: expected at least {expected}")]
    TooShort {
        /// The message.
        kind: MessageType,
        /// Bytes that came.
        len: usize,
        /// Bytes that it needs.
        expected: usize,
    },
    /// A slot number that is none.
    #[error("{kind:?}: {error}")]
    Slot {
        /// The message.
        kind: MessageType,
        /// What is wrong with the slot.
        error: BadSlot,
    },
    /// A snapshot with more functions than a bus has slots.
    #[error("{kind:?} lists {count} functions: expected at most {MAX_FUNCTIONS}")]
    TooManyFunctions {
        /// The message.
        kind: MessageType,
        /// The count that it gives.
        count: u32,
    },
    /// A snapshot that has two functions in one slot.
    #[error("{kind:?} lists two functions in slot {slot}")]
    SlotTwice {
        /// The message.
        kind: MessageType,
        /// The slot.
        slot: Slot,
    },
    /// Resources with more interrupts than a message can have.
    #[error("{kind:?} has {count} interrupts: expected at most {MAX_ASSIGNED}")]
    TooManyInterrupts {
        /// The message.
        kind: MessageType,
        /// The count that it gives.
        count: u32,
    },
    /// A configuration block longer than any.
    #[error("{kind:?} of {bytes} bytes: expected at most {MAX_BLOCK}")]
    BlockTooLong {
        /// The message.
        kind: MessageType,
        /// The length that it gives.
        bytes: u32,
    },
    /// A completion too short for its status or for what the request asked.
    #[error("completion of {request:?} has {len} bytes: expected at least {expected}")]
    ReplyTooShort {
        /// What was asked.
        request: MessageType,
        /// Bytes that came.
        len: usize,
        /// Bytes that it needs.
        expected: usize,
    },
}

/// A function as the host describes it in a snapshot, in either form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Where it sits.
    pub slot: Slot,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class; 2 for network devices.
    pub class: u8,
    /// Subclass; 0 for Ethernet.
    pub subclass: u8,
    /// Programming interface.
    pub prog_if: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// The number that a NIC's VF association names.
    pub serial: Serial,
    /// NUMA node of the physical device, if the host says.
    pub numa_node: Option<u16>,
}

impl Description {
    /// Whether this is the same function: one with another slot, vendor, device or serial number is a different one.
    #[must_use]
    pub fn same_function(&self, other: &Self) -> bool {
        (self.slot, self.vendor, self.device, self.serial)
            == (other.slot, other.vendor, other.device, other.serial)
    }

    /// The bytes for BUS_RELATIONS; the NUMA node has no place there.
    #[must_use]
    pub fn to_form1(&self) -> Description1 {
        Description1 {
            vendor: self.vendor.into(),
            device: self.device.into(),
            revision: self.revision,
            prog_if: self.prog_if,
            subclass: self.subclass,
            class: self.class,
            subsystem_vendor: self.subsystem_vendor.into(),
            subsystem: self.subsystem.into(),
            slot: self.slot.to_wire().into(),
            serial: self.serial.0.into(),
        }
    }

    /// The bytes for BUS_RELATIONS2.
    #[must_use]
    pub fn to_form2(&self) -> Description2 {
        Description2 {
            base: self.to_form1(),
            flags: if self.numa_node.is_some() { FLAG_NUMA } else { 0 }.into(),
            numa_node: self.numa_node.unwrap_or(0).into(),
            reserved: 0.into(),
        }
    }

    fn from_form1(wire: &Description1) -> Result<Self, BadSlot> {
        Ok(Self {
            slot: Slot::from_wire(wire.slot.get())?,
            vendor: wire.vendor.get(),
            device: wire.device.get(),
            revision: wire.revision,
            class: wire.class,
            subclass: wire.subclass,
            prog_if: wire.prog_if,
            subsystem_vendor: wire.subsystem_vendor.get(),
            subsystem: wire.subsystem.get(),
            serial: Serial(wire.serial.get()),
            numa_node: None,
        })
    }

    fn from_form2(wire: &Description2) -> Result<Self, BadSlot> {
        let numa_node = (wire.flags.get() & FLAG_NUMA != 0).then(|| wire.numa_node.get());
        Ok(Self { numa_node, ..Self::from_form1(&wire.base)? })
    }
}

#[derive(Clone, Copy, Debug)]
enum Forms<'a> {
    One(&'a [Description1]),
    Two(&'a [Description2]),
}

/// The functions of a snapshot: at most [`MAX_FUNCTIONS`], each in a slot of its own.
#[derive(Clone, Copy, Debug)]
pub struct Descriptions<'a>(Forms<'a>);

impl<'a> Descriptions<'a> {
    fn parse(kind: MessageType, message: &'a [u8]) -> Result<Self, MessageError> {
        let (head, rest) = split::<RelationsHeader>(kind, message)?;
        let count = head.count.get();
        let entries = usize::try_from(count).unwrap_or(usize::MAX);
        if entries > MAX_FUNCTIONS {
            return Err(MessageError::TooManyFunctions { kind, count });
        }
        let list = if kind == MessageType::BUS_RELATIONS2 {
            <[Description2]>::ref_from_prefix_with_elems(rest, entries)
                .map(|(list, _)| Forms::Two(list))
                .map_err(|_| size_of::<Description2>())
        } else {
            <[Description1]>::ref_from_prefix_with_elems(rest, entries)
                .map(|(list, _)| Forms::One(list))
                .map_err(|_| size_of::<Description1>())
        };
        let list = list.map_err(|size| MessageError::TooShort {
            kind,
            len: message.len(),
            expected: size_of::<RelationsHeader>() + entries * size,
        })?;
        let list = Self(list);
        let mut taken = [false; MAX_FUNCTIONS];
        for description in list.decoded() {
            let slot = description.map_err(|error| MessageError::Slot { kind, error })?.slot;
            let seen = taken.get_mut(slot.to_wire() as usize);
            if seen.is_some_and(|seen| core::mem::replace(seen, true)) {
                return Err(MessageError::SlotTwice { kind, slot });
            }
        }
        Ok(list)
    }

    fn decoded(&self) -> impl Iterator<Item = Result<Description, BadSlot>> + 'a {
        let (one, two): (&[Description1], &[Description2]) = match self.0 {
            Forms::One(list) => (list, &[]),
            Forms::Two(list) => (&[], list),
        };
        one.iter().map(Description::from_form1).chain(two.iter().map(Description::from_form2))
    }

    /// Number of functions.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Forms::One(list) => list.len(),
            Forms::Two(list) => list.len(),
        }
    }

    /// Whether every function is gone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The functions in the host's order.
    pub fn iter(&self) -> impl Iterator<Item = Description> + 'a {
        // The slots were checked when the snapshot was taken apart, so nothing is left out here.
        self.decoded().filter_map(Result::ok)
    }
}

/// A message from the host, as a guest sees it.
#[derive(Clone, Copy, Debug)]
pub enum HostMessage<'a> {
    /// BUS_RELATIONS or BUS_RELATIONS2.
    Relations(Descriptions<'a>),
    /// INVALIDATE_DEVICE.
    InvalidateDevice(Slot),
    /// INVALIDATE_BUS.
    InvalidateBus,
    /// EJECT.
    Eject(Slot),
    /// QUERY_STOP, RE_ENABLE or QUERY_STOP_FAILED. No guest does anything with them.
    Stop(MessageType, Slot),
    /// INVALIDATE_BLOCK.
    InvalidateBlock {
        /// The function.
        slot: Slot,
        /// Bit n set: block n changed.
        mask: u64,
    },
}

impl<'a> HostMessage<'a> {
    /// Takes a message from the host apart.
    ///
    /// # Errors
    /// [`MessageError`]; the message is then to be ignored.
    pub fn parse(message: &'a [u8]) -> Result<Self, MessageError> {
        let kind = check(message, Sender::Host)?;
        Ok(match kind {
            MessageType::BUS_RELATIONS | MessageType::BUS_RELATIONS2 => {
                Self::Relations(Descriptions::parse(kind, message)?)
            }
            MessageType::INVALIDATE_DEVICE => Self::InvalidateDevice(slotted(kind, message)?),
            MessageType::INVALIDATE_BUS => Self::InvalidateBus,
            MessageType::EJECT => Self::Eject(slotted(kind, message)?),
            MessageType::INVALIDATE_BLOCK => {
                let (wire, _) = split::<InvalidateBlock>(kind, message)?;
                let slot = slot(kind, wire.slot.get())?;
                Self::InvalidateBlock { slot, mask: wire.mask.get() }
            }
            _ => Self::Stop(kind, slotted(kind, message)?),
        })
    }
}

/// A message from the guest, as a host sees it.
#[derive(Clone, Copy, Debug)]
pub enum GuestMessage<'a> {
    /// QUERY_PROTOCOL_VERSION.
    QueryVersion(Version),
    /// QUERY_BUS_RELATIONS.
    QueryRelations,
    /// QUERY_RESOURCE_REQUIREMENTS.
    QueryRequirements(Slot),
    /// GET_RESOURCES.
    GetResources(Slot),
    /// ASSIGNED_RESOURCES in any form.
    AssignedResources {
        /// The function.
        slot: Slot,
        /// Its resources; guests of today leave them zero.
        resources: [Resource; BARS],
        /// The interrupts that it is to have.
        interrupts: AssignedInterrupts<'a>,
    },
    /// RELEASE_RESOURCES.
    ReleaseResources(Slot),
    /// FDO_D0_ENTRY with the guest physical address of the MMIO window.
    D0Entry {
        /// Where the window lies.
        window: u64,
    },
    /// FDO_D0_EXIT.
    D0Exit,
    /// EJECT_COMPLETE.
    EjectComplete(Slot),
    /// DEVICE_POWER_STATE_CHANGE.
    PowerStateChange {
        /// The function.
        slot: Slot,
        /// 1 is D0, 4 is D3.
        state: u32,
    },
    /// CREATE_INTERRUPT in any form; `descriptor` is as long as that form's shortest.
    CreateInterrupt {
        /// Which form.
        kind: MessageType,
        /// The function.
        slot: Slot,
        /// The interrupt that is wished.
        descriptor: &'a [u8],
    },
    /// DELETE_INTERRUPT in any form.
    DeleteInterrupt {
        /// The function.
        slot: Slot,
        /// The interrupt to delete.
        interrupt: RemappedMsi,
    },
    /// READ_BLOCK.
    ReadBlock {
        /// The function.
        slot: Slot,
        /// Number of the block.
        block: u32,
        /// Bytes wished.
        bytes: u32,
    },
    /// WRITE_BLOCK.
    WriteBlock {
        /// The function.
        slot: Slot,
        /// Number of the block.
        block: u32,
        /// The data.
        data: &'a [u8],
    },
    /// RESET_DEVICE.
    Reset(Slot),
    /// TDISP.
    Tdisp {
        /// The function.
        slot: Slot,
        /// The command, in a format that is not this protocol's.
        command: &'a [u8],
    },
}

/// The interrupts in ASSIGNED_RESOURCES, or in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignedInterrupts<'a> {
    bytes: &'a [u8],
    stride: usize,
}

impl<'a> AssignedInterrupts<'a> {
    /// Bytes from one interrupt to the next in a form of ASSIGNED_RESOURCES.
    #[must_use]
    pub const fn stride(kind: MessageType) -> usize {
        match kind {
            MessageType::ASSIGNED_RESOURCES => size_of::<Msi1>(),
            MessageType::ASSIGNED_RESOURCES2 => size_of::<Msi2>(),
            _ => MSI3_STRIDE,
        }
    }

    /// `count` interrupts at the start of what stands behind the head of a message.
    pub(super) fn parse(
        kind: MessageType,
        count: u32,
        rest: &'a [u8],
    ) -> Result<Self, MessageError> {
        let stride = Self::stride(kind);
        let number = usize::try_from(count).unwrap_or(usize::MAX);
        if number > MAX_ASSIGNED {
            return Err(MessageError::TooManyInterrupts { kind, count });
        }
        let head = size_of::<AssignedResources>();
        let bytes = rest.get(..number * stride).ok_or(MessageError::TooShort {
            kind,
            len: head + rest.len(),
            expected: head + number * stride,
        })?;
        Ok(Self { bytes, stride })
    }

    /// Number of interrupts.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / self.stride
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Each interrupt in the message's form, with the padding behind it.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks_exact(self.stride)
    }
}

impl<'a> GuestMessage<'a> {
    /// Takes a message from the guest apart.
    ///
    /// # Errors
    /// [`MessageError`]; a host answers such a request with [`Status::BAD_DATA`](super::Status::BAD_DATA).
    pub fn parse(message: &'a [u8]) -> Result<Self, MessageError> {
        let kind = check(message, Sender::Guest)?;
        Ok(match kind {
            MessageType::QUERY_PROTOCOL_VERSION => {
                let (wire, _) = split::<QueryVersion>(kind, message)?;
                Self::QueryVersion(Version(wire.version.get()))
            }
            MessageType::QUERY_BUS_RELATIONS => Self::QueryRelations,
            MessageType::FDO_D0_ENTRY => {
                let (wire, _) = split::<D0Entry>(kind, message)?;
                Self::D0Entry { window: wire.window.get() }
            }
            MessageType::FDO_D0_EXIT => Self::D0Exit,
            MessageType::READ_BLOCK | MessageType::WRITE_BLOCK => Self::block(kind, message)?,
            MessageType::ASSIGNED_RESOURCES
            | MessageType::ASSIGNED_RESOURCES2
            | MessageType::ASSIGNED_RESOURCES3 => {
                let (wire, rest) = split::<AssignedResources>(kind, message)?;
                Self::AssignedResources {
                    slot: slot(kind, wire.slot.get())?,
                    resources: wire.resources,
                    interrupts: AssignedInterrupts::parse(kind, wire.msi_count.get(), rest)?,
                }
            }
            MessageType::TDISP => Self::tdisp(message)?,
            MessageType::DEVICE_POWER_STATE_CHANGE => {
                let (wire, _) = split::<PowerStateChange>(kind, message)?;
                let slot = slot(kind, wire.slot.get())?;
                Self::PowerStateChange { slot, state: wire.state.get() }
            }
            MessageType::DELETE_INTERRUPT | MessageType::DELETE_INTERRUPT2 => {
                let (wire, _) = split::<DeleteInterrupt>(kind, message)?;
                let slot = slot(kind, wire.slot.get())?;
                Self::DeleteInterrupt { slot, interrupt: wire.interrupt }
            }
            _ => Self::of_slot(kind, message)?,
        })
    }

    /// The messages that begin with a slot and need no structure beyond that.
    fn of_slot(kind: MessageType, message: &'a [u8]) -> Result<Self, MessageError> {
        let slot = slotted(kind, message)?;
        Ok(match kind {
            MessageType::QUERY_RESOURCE_REQUIREMENTS => Self::QueryRequirements(slot),
            MessageType::GET_RESOURCES => Self::GetResources(slot),
            MessageType::RELEASE_RESOURCES => Self::ReleaseResources(slot),
            MessageType::EJECT_COMPLETE => Self::EjectComplete(slot),
            MessageType::RESET_DEVICE => Self::Reset(slot),
            MessageType::CREATE_INTERRUPT
            | MessageType::CREATE_INTERRUPT2
            | MessageType::CREATE_INTERRUPT3 => {
                let descriptor = message.get(size_of::<Slotted>()..).unwrap_or_default();
                Self::CreateInterrupt { kind, slot, descriptor }
            }
            other => return Err(MessageError::UnknownType(other)),
        })
    }

    fn tdisp(message: &'a [u8]) -> Result<Self, MessageError> {
        let kind = MessageType::TDISP;
        let (wire, rest) = split::<Tdisp>(kind, message)?;
        let slot = slot(kind, wire.slot.get())?;
        let length = usize::try_from(wire.length.get()).unwrap_or(usize::MAX);
        let command = rest.get(..length).ok_or(MessageError::TooShort {
            kind,
            len: message.len(),
            expected: size_of::<Tdisp>().saturating_add(length),
        })?;
        Ok(Self::Tdisp { slot, command })
    }

    fn block(kind: MessageType, message: &'a [u8]) -> Result<Self, MessageError> {
        let (wire, rest) = split::<Block>(kind, message)?;
        let (slot, block, bytes) =
            (slot(kind, wire.slot.get())?, wire.block.get(), wire.bytes.get());
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if length > MAX_BLOCK {
            return Err(MessageError::BlockTooLong { kind, bytes });
        }
        if kind == MessageType::READ_BLOCK {
            return Ok(Self::ReadBlock { slot, block, bytes });
        }
        let data = rest.get(..length).ok_or(MessageError::TooShort {
            kind,
            len: message.len(),
            expected: size_of::<Block>() + length,
        })?;
        Ok(Self::WriteBlock { slot, block, data })
    }
}

/// The type of a message, once it is known that `sender` may send it and that it is long enough for its head.
fn check(message: &[u8], sender: Sender) -> Result<MessageType, MessageError> {
    let Some(kind) = message.first_chunk() else {
        return Err(MessageError::NoType(message.len()));
    };
    let kind = MessageType(u32::from_le_bytes(*kind));
    let info = info(kind).ok_or(MessageError::UnknownType(kind))?;
    if info.sender != sender {
        return Err(MessageError::WrongSide(kind));
    }
    if message.len() < info.min_len {
        return Err(MessageError::TooShort { kind, len: message.len(), expected: info.min_len });
    }
    Ok(kind)
}

fn split<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    kind: MessageType,
    message: &[u8],
) -> Result<(&T, &[u8]), MessageError> {
    T::ref_from_prefix(message).map_err(|_| MessageError::TooShort {
        kind,
        len: message.len(),
        expected: size_of::<T>(),
    })
}

fn slot(kind: MessageType, number: u32) -> Result<Slot, MessageError> {
    Slot::from_wire(number).map_err(|error| MessageError::Slot { kind, error })
}

fn slotted(kind: MessageType, message: &[u8]) -> Result<Slot, MessageError> {
    slot(kind, split::<Slotted>(kind, message)?.0.slot.get())
}

/// Writes BUS_RELATIONS2, or BUS_RELATIONS where `version` has no other, for `functions`; at most [`MAX_FUNCTIONS`].
#[must_use]
pub fn encode_relations(version: Version, functions: &[Description]) -> alloc::vec::Vec<u8> {
    let two = version >= Version::V1_3;
    let kind = if two { MessageType::BUS_RELATIONS2 } else { MessageType::BUS_RELATIONS };
    let functions = functions.get(..MAX_FUNCTIONS).unwrap_or(functions);
    let head = RelationsHeader { kind: kind.0.into(), count: (functions.len() as u32).into() };
    let mut message = head.as_bytes().to_vec();
    for function in functions {
        if two {
            message.extend_from_slice(function.to_form2().as_bytes());
        } else {
            message.extend_from_slice(function.to_form1().as_bytes());
        }
    }
    message
}
