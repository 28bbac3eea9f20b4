//! The bytes of the messages. Field names and sizes as in PROTOCOL §10.1.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// BARs of a function.
pub const BARS: usize = 6;
/// Most functions that a bus can have: one per slot.
pub const MAX_FUNCTIONS: usize = 256;
/// Size of the MMIO window: a page to select the slot, a page of its configuration space.
pub const WINDOW_SIZE: u64 = 0x2000;
/// Most data of a configuration block.
pub const MAX_BLOCK: usize = 128;
/// Processors that fit into an interrupt of form 2 or 3.
pub const MSI_PROCESSORS: usize = 32;
/// Bytes of [`Msi2`] that Linux sends.
pub const MSI2_SHORT: usize = 70;
/// Bytes of [`Msi3`] that Linux sends.
pub const MSI3_SHORT: usize = 74;
/// Distance between elements of an array of [`Msi3`].
pub const MSI3_STRIDE: usize = 80;
/// Most interrupts in one ASSIGNED_RESOURCES.
pub const MAX_ASSIGNED: usize = 494;
/// [`Description2::flags`]: `numa_node` is valid.
pub const FLAG_NUMA: u32 = 1;

/// QUERY_BUS_RELATIONS, FDO_D0_EXIT, INVALIDATE_BUS: nothing but the type.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Bare {
    /// 0: message type.
    pub kind: U32,
}
const _: () = assert!(size_of::<Bare>() == 4);

/// EJECT, INVALIDATE_DEVICE, QUERY_STOP, RE_ENABLE, QUERY_STOP_FAILED, QUERY_RESOURCE_REQUIREMENTS,
/// RELEASE_RESOURCES, RESET_DEVICE: a type and a slot.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Slotted {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
}
const _: () = assert!(size_of::<Slotted>() == 8);

/// Start of BUS_RELATIONS (followed by [`Description1`]) and BUS_RELATIONS2 (followed by [`Description2`]).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RelationsHeader {
    /// 0: message type.
    pub kind: U32,
    /// 4: number of descriptions that follow; 0 means that every function is gone.
    pub count: U32,
}
const _: () = assert!(size_of::<RelationsHeader>() == 8);

/// A function in BUS_RELATIONS.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Description1 {
    /// 0: vendor id.
    pub vendor: U16,
    /// 2: device id.
    pub device: U16,
    /// 4: revision.
    pub revision: u8,
    /// 5: programming interface.
    pub prog_if: u8,
    /// 6: subclass.
    pub subclass: u8,
    /// 7: class; 2 for network devices.
    pub class: u8,
    /// 8: subsystem vendor id.
    pub subsystem_vendor: U16,
    /// 10: subsystem id.
    pub subsystem: U16,
    /// 12: slot number.
    pub slot: U32,
    /// 16: serial number, the one that a NIC's VF association names.
    pub serial: U32,
}
const _: () = assert!(size_of::<Description1>() == 20);

/// A function in BUS_RELATIONS2.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Description2 {
    /// 0: what form 1 has.
    pub base: Description1,
    /// 20: bit 0: `numa_node` is valid.
    pub flags: U32,
    /// 24: NUMA node of the physical device.
    pub numa_node: U16,
    /// 26: zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<Description2>() == 28);

/// DEVICE_POWER_STATE_CHANGE. Linux's layout of the reply repeats slot and state; OpenVMM sends the status only.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PowerStateChange {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
    /// 8: 1 is D0 (working), 4 is D3 (off).
    pub state: U32,
    /// 12: zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<PowerStateChange>() == 16);

/// Completion of QUERY_RESOURCE_REQUIREMENTS.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ResourceRequirementsReply {
    /// 0: status.
    pub status: U32,
    /// 4: per BAR, what it reads after all ones were written to it; 0 if there is none.
    pub bars: [U32; BARS],
}
const _: () = assert!(size_of::<ResourceRequirementsReply>() == 28);

/// GET_RESOURCES.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct GetResources {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
    /// 8: zero.
    pub reserved: [u8; 24],
}
const _: () = assert!(size_of::<GetResources>() == 32);

/// One resource.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Resource {
    /// 0: 0 none, 1 port, 2 interrupt, 3 memory, 7 large memory.
    pub kind: u8,
    /// 1: how it is shared.
    pub share: u8,
    /// 2: for large memory, the unit of the length: 0x200 for 2^8, 0x400 for 2^16, 0x800 for 2^32 bytes.
    pub flags: U16,
    /// 4: first address.
    pub address: U64,
    /// 12: length in bytes, or in the unit that `flags` gives.
    pub length: U32,
    /// 16: zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<Resource>() == 20);

/// Completion of GET_RESOURCES. The one reply without a status.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ResourcesReply {
    /// 0: 1.
    pub version: U16,
    /// 2: 1.
    pub revision: U16,
    /// 4: 6.
    pub count: U32,
    /// 8: a resource per BAR.
    pub resources: [Resource; BARS],
}
const _: () = assert!(size_of::<ResourcesReply>() == 128);

/// FDO_D0_ENTRY.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct D0Entry {
    /// 0: message type.
    pub kind: U32,
    /// 4: zero.
    pub reserved: U32,
    /// 8: guest physical address of the MMIO window, which takes [`WINDOW_SIZE`] bytes.
    pub window: U64,
}
const _: () = assert!(size_of::<D0Entry>() == 16);

/// READ_BLOCK, and WRITE_BLOCK with its data behind.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Block {
    /// 0: message type.
    pub kind: U32,
    /// 4: number of the block.
    pub block: U32,
    /// 8: slot number.
    pub slot: U32,
    /// 12: bytes to read, or bytes that follow; at most [`MAX_BLOCK`].
    pub bytes: U32,
}
const _: () = assert!(size_of::<Block>() == 16);

/// EJECT_COMPLETE. Linux sends these 12 bytes, OpenVMM's guest only the first 8.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct EjectComplete {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number. Nothing else says which function is meant.
    pub slot: U32,
    /// 8: 0.
    pub status: U32,
}
const _: () = assert!(size_of::<EjectComplete>() == 12);

/// Start of ASSIGNED_RESOURCES in all forms; `msi_count` interrupts of that form follow. The completion has the
/// same shape with the status in place of the type, or ends after the status.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AssignedResources {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
    /// 8: a resource per BAR. Guests leave these zero: they set the BARs through configuration space.
    pub resources: [Resource; BARS],
    /// 128: number of interrupts that follow.
    pub msi_count: U32,
    /// 132: zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<AssignedResources>() == 136);

/// INVALIDATE_BLOCK.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct InvalidateBlock {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
    /// 8: bit n set: block n changed.
    pub mask: U64,
}
const _: () = assert!(size_of::<InvalidateBlock>() == 16);

/// QUERY_PROTOCOL_VERSION.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct QueryVersion {
    /// 0: message type.
    pub kind: U32,
    /// 4: the version asked for.
    pub version: U32,
}
const _: () = assert!(size_of::<QueryVersion>() == 8);

/// Completion of QUERY_PROTOCOL_VERSION.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct VersionReply {
    /// 0: status.
    pub status: U32,
    /// 4: a version of the host's choice. OpenVMM says 1.3 whatever was asked; the version in force is the one
    /// that was asked for.
    pub version: U32,
}
const _: () = assert!(size_of::<VersionReply>() == 8);

/// Completion with nothing but a status.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct StatusReply {
    /// 0: status.
    pub status: U32,
}
const _: () = assert!(size_of::<StatusReply>() == 4);

/// An interrupt, form 1.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Msi1 {
    /// 0: interrupt vector.
    pub vector: u8,
    /// 1: 0 fixed, 1 lowest priority.
    pub mode: u8,
    /// 2: number of consecutive vectors, at most 32.
    pub count: U16,
    /// 4: zero.
    pub reserved: U32,
    /// 8: processors that may take it, one bit each.
    pub processors: U64,
}
const _: () = assert!(size_of::<Msi1>() == 16);

/// An interrupt, form 2. Linux leaves out the last field when it sends one alone.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Msi2 {
    /// 0: interrupt vector.
    pub vector: u8,
    /// 1: 0 fixed, 1 lowest priority.
    pub mode: u8,
    /// 2: number of consecutive vectors.
    pub count: U16,
    /// 4: how many of `processors` are used.
    pub processor_count: U16,
    /// 6: processors that may take it.
    pub processors: [U16; MSI_PROCESSORS],
    /// 70: zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<Msi2>() == 72);

/// An interrupt, form 3. Linux leaves out the last field; in arrays each takes [`MSI3_STRIDE`] bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Msi3 {
    /// 0: interrupt vector.
    pub vector: U32,
    /// 4: 0 fixed, 1 lowest priority.
    pub mode: u8,
    /// 5: zero.
    pub reserved: u8,
    /// 6: number of consecutive vectors.
    pub count: U16,
    /// 8: how many of `processors` are used.
    pub processor_count: U16,
    /// 10: processors that may take it.
    pub processors: [U16; MSI_PROCESSORS],
    /// 74: zero.
    pub reserved2: U16,
}
const _: () = assert!(size_of::<Msi3>() == 76);

/// What the device has to write to raise an interrupt. For several vectors: data, data + 1, ...
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RemappedMsi {
    /// 0: zero.
    pub reserved: U16,
    /// 2: number of vectors.
    pub count: U16,
    /// 4: first value to write.
    pub data: U32,
    /// 8: where to write it.
    pub address: U64,
}
const _: () = assert!(size_of::<RemappedMsi>() == 16);

/// Completion of CREATE_INTERRUPT in all forms.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CreateInterruptReply {
    /// 0: status.
    pub status: U32,
    /// 4: zero.
    pub reserved: U32,
    /// 8: the interrupt as the device sees it.
    pub interrupt: RemappedMsi,
}
const _: () = assert!(size_of::<CreateInterruptReply>() == 24);

/// DELETE_INTERRUPT in both forms.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DeleteInterrupt {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
    /// 8: what CREATE_INTERRUPT returned.
    pub interrupt: RemappedMsi,
}
const _: () = assert!(size_of::<DeleteInterrupt>() == 24);

/// Start of TDISP; `length` bytes follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Tdisp {
    /// 0: message type.
    pub kind: U32,
    /// 4: slot number.
    pub slot: U32,
    /// 8: bytes that follow.
    pub length: U64,
}
const _: () = assert!(size_of::<Tdisp>() == 16);
