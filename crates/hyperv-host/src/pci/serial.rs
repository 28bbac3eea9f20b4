//! How hosts number their functions. There are several ways, and none makes the number an identity.

use vmbus::{Guid, Serial};

/// How a host chooses serial numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialPolicy {
    /// 1, 2, 3, ... in the order of the devices, the same after every return: classic Azure hosts.
    Ordinals,
    /// The first four bytes of the bus's instance GUID: OpenVMM and OpenHCL.
    Instance,
    /// The same for all, also 0.
    Constant(Serial),
    /// Another one after every return of the device, as after servicing.
    Changing,
}

impl SerialPolicy {
    /// The number of the `ordinal`th device, counted from 0, when it has come back `returns` times.
    #[must_use]
    pub const fn serial(self, ordinal: u32, instance: &Guid, returns: u32) -> Serial {
        match self {
            Self::Ordinals => Serial(ordinal.wrapping_add(1)),
            Self::Instance => {
                let [a, b, c, d, ..] = *instance.as_bytes();
                Serial(u32::from_be_bytes([a, b, c, d]))
            }
            Self::Constant(serial) => serial,
            Self::Changing => Serial(ordinal.wrapping_add(1).wrapping_add(returns)),
        }
    }
}
