//! Interrupts: what a guest asks for, and what a function has to write to raise one.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::message::{
    MSI_PROCESSORS, MSI2_SHORT, MSI3_SHORT, MessageType, Msi1, Msi2, Msi3, RemappedMsi, Slotted,
    Version,
};
use crate::slot::Slot;

/// Most vectors of one interrupt.
pub const MOST_VECTORS: u16 = 32;
/// Processors that form 1 can name.
const FORM1_PROCESSORS: u16 = 64;

/// How an interrupt with several processors chooses one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// The first of them.
    #[default]
    Fixed,
    /// The one with the lowest priority.
    LowestPriority,
}

/// An interrupt that is wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptWish<'a> {
    /// First vector on the processor.
    pub vector: u32,
    /// How many vectors in a row, 1 to [`MOST_VECTORS`]. More than one is for MSI without a table.
    pub vectors: u16,
    /// How a processor is chosen.
    pub delivery: Delivery,
    /// Numbers of the processors that may take it, 1 to 32 of them.
    pub processors: &'a [u16],
}

/// An interrupt that cannot be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// The number of vectors.
    #[error("interrupt with {0} vectors: expected 1 to {MOST_VECTORS}")]
    Vectors(u16),
    /// The number of processors.
    #[error("interrupt for {0} processors: expected 1 to {MSI_PROCESSORS}")]
    Processors(usize),
    /// A processor that form 1 cannot name.
    #[error("interrupt for processor {0}: expected one below {FORM1_PROCESSORS} in version 1.1")]
    Processor(u16),
    /// A vector that forms 1 and 2 cannot name.
    #[error("interrupt vector {vector:#x}: expected at most 0xff in version {version}")]
    Vector {
        /// The last vector asked for.
        vector: u32,
        /// The version spoken.
        version: Version,
    },
}

/// An interrupt as a function sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interrupt {
    /// Where to write.
    pub address: u64,
    /// What to write for the first vector.
    pub data: u32,
    /// How many vectors there are: data, data + 1, ...
    pub vectors: u16,
}

impl Interrupt {
    /// What the function has to write for one of the vectors. `None` if there are not so many.
    #[must_use]
    pub const fn data_of(&self, vector: u16) -> Option<u32> {
        if vector < self.vectors { Some(self.data.wrapping_add(vector as u32)) } else { None }
    }

    pub(crate) const fn from_wire(wire: &RemappedMsi) -> Self {
        Self { address: wire.address.get(), data: wire.data.get(), vectors: wire.count.get() }
    }
}

/// The message that asks for an interrupt in a version.
#[must_use]
pub fn message_type(version: Version) -> MessageType {
    if version >= Version::V1_4 {
        MessageType::CREATE_INTERRUPT3
    } else if version >= Version::V1_2 {
        MessageType::CREATE_INTERRUPT2
    } else {
        MessageType::CREATE_INTERRUPT
    }
}

impl InterruptWish<'_> {
    /// The message that asks for it, as Linux sends it: forms 2 and 3 without their reserved tail.
    ///
    /// # Errors
    /// [`WishError`] if it cannot be asked for in this version.
    pub fn encode(&self, slot: Slot, version: Version) -> Result<Vec<u8>, WishError> {
        let kind = message_type(version);
        let head = Slotted { kind: kind.0.into(), slot: slot.to_wire().into() };
        let mut message = head.as_bytes().to_vec();
        let shortest = match kind {
            MessageType::CREATE_INTERRUPT3 => MSI3_SHORT,
            MessageType::CREATE_INTERRUPT2 => MSI2_SHORT,
            _ => size_of::<Msi1>(),
        };
        message.extend(self.describe(kind, version)?.iter().take(shortest));
        Ok(message)
    }

    /// The descriptor in the form of a message that creates interrupts, in full.
    pub(crate) fn describe(
        &self,
        kind: MessageType,
        version: Version,
    ) -> Result<Vec<u8>, WishError> {
        if !(1..=MOST_VECTORS).contains(&self.vectors) {
            return Err(WishError::Vectors(self.vectors));
        }
        if !(1..=MSI_PROCESSORS).contains(&self.processors.len()) {
            return Err(WishError::Processors(self.processors.len()));
        }
        let mode = match self.delivery {
            Delivery::Fixed => 0,
            Delivery::LowestPriority => 1,
        };
        let count = self.vectors.into();
        let processor_count = (self.processors.len() as u16).into();
        let mut processors = [0.into(); MSI_PROCESSORS];
        for (place, processor) in processors.iter_mut().zip(self.processors) {
            *place = (*processor).into();
        }
        Ok(match kind {
            MessageType::CREATE_INTERRUPT3 => {
                let msi = Msi3 {
                    vector: self.vector.into(),
                    mode,
                    reserved: 0,
                    count,
                    processor_count,
                    processors,
                    reserved2: 0.into(),
                };
                msi.as_bytes().to_vec()
            }
            MessageType::CREATE_INTERRUPT2 => {
                let vector = self.narrow_vector(version)?;
                let reserved = 0.into();
                let msi = Msi2 { vector, mode, count, processor_count, processors, reserved };
                msi.as_bytes().to_vec()
            }
            _ => {
                let vector = self.narrow_vector(version)?;
                let processors = self.processor_bits()?.into();
                let msi = Msi1 { vector, mode, count, reserved: 0.into(), processors };
                msi.as_bytes().to_vec()
            }
        })
    }

    /// The first vector, if the last fits into 8 bits.
    fn narrow_vector(&self, version: Version) -> Result<u8, WishError> {
        let last = self.vector.saturating_add(u32::from(self.vectors) - 1);
        let fits = last <= 0xff;
        let vector = u8::try_from(self.vector).ok().filter(|_| fits);
        vector.ok_or(WishError::Vector { vector: last, version })
    }

    fn processor_bits(&self) -> Result<u64, WishError> {
        self.processors.iter().try_fold(0, |bits, processor| {
            let fits = *processor < FORM1_PROCESSORS;
            fits.then(|| bits | 1 << processor).ok_or(WishError::Processor(*processor))
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::message::GuestMessage;
    use std::vec;

    const WISH: InterruptWish<'_> = InterruptWish {
        vector: 0x31,
        vectors: 4,
        delivery: Delivery::LowestPriority,
        processors: &[2, 5],
    };

    fn slot() -> Slot {
        Slot::new(2, 5).unwrap()
    }

    #[test]
    fn each_version_has_its_form() {
        let head = |kind: u8| vec![kind, 0, 0x49, 0x42, 0xa2, 0, 0, 0];
        let one = WISH.encode(slot(), Version::V1_1).unwrap();
        let rest = [0x31, 1, 4, 0, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(one, [head(0x14), rest.to_vec()].concat());

        let rest = [0x31, 1, 4, 0, 2, 0, 2, 0, 5, 0];
        for version in [Version::V1_2, Version::V1_3] {
            let two = WISH.encode(slot(), version).unwrap();
            assert_eq!(two.len(), 78);
            assert_eq!(two[..18], [head(0x17), rest.to_vec()].concat());
            assert!(two[18..].iter().all(|byte| *byte == 0));
        }

        let wish = InterruptWish { vector: 0x1_0031, ..WISH };
        let rest = [0x31, 0, 1, 0, 1, 0, 4, 0, 2, 0, 2, 0, 5, 0];
        let three = wish.encode(slot(), Version::V1_4).unwrap();
        assert_eq!(three.len(), 82);
        assert_eq!(three[..22], [head(0x1b), rest.to_vec()].concat());
        for message in [one, three] {
            assert!(matches!(
                GuestMessage::parse(&message),
                Ok(GuestMessage::CreateInterrupt { slot: at, .. }) if at == slot()
            ));
        }
    }

    #[test]
    fn what_a_form_cannot_say_is_refused() {
        let encode = |wish: InterruptWish<'_>, version| wish.encode(slot(), version);
        for vectors in [0, 33] {
            let wish = InterruptWish { vectors, ..WISH };
            assert_eq!(encode(wish, Version::V1_4), Err(WishError::Vectors(vectors)));
        }
        for count in [0, 33] {
            let processors = vec![0; count];
            let wish = InterruptWish { processors: &processors, ..WISH };
            assert_eq!(encode(wish, Version::V1_4), Err(WishError::Processors(count)));
        }
        let wish = InterruptWish { processors: &[64], ..WISH };
        assert_eq!(encode(wish, Version::V1_1), Err(WishError::Processor(64)));
        assert!(encode(wish, Version::V1_2).is_ok());
        let wish = InterruptWish { vector: 0xfd, ..WISH };
        for version in [Version::V1_1, Version::V1_3] {
            let error = WishError::Vector { vector: 0x100, version };
            assert_eq!(encode(wish, version), Err(error));
        }
    }

    #[test]
    fn several_vectors_are_consecutive_numbers() {
        let interrupt = Interrupt { address: 0xfee0_0000, data: 7, vectors: 2 };
        assert_eq!([0, 1, 2].map(|n| interrupt.data_of(n)), [Some(7), Some(8), None]);
    }
}
