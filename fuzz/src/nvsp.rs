//! Messages of the NIC.

use netvsc::nvsp::{GuestMessage, HostMessage, MessageType, Version};

/// The versions that there are.
const VERSIONS: [Version; 6] =
    [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6, Version::V6_1];

/// One message: taken for one of the guest, and for one of the host in every version. What is understood is said again, and
/// understood as the same; what stands behind it changes nothing.
pub fn nvsp(input: &[u8]) {
    let mut longer = input.to_vec();
    longer.extend([0x5a; 9]);
    if let Ok(message) = GuestMessage::decode(input) {
        kind(input);
        for version in VERSIONS {
            assert_eq!(GuestMessage::decode(&message.encode(version)), Ok(message));
        }
        assert_eq!(GuestMessage::decode(&longer), Ok(message));
    }
    for version in VERSIONS {
        let Ok(message) = HostMessage::decode(input, version) else { continue };
        kind(input);
        assert_eq!(HostMessage::decode(&message.encode(version), version), Ok(message));
        // A table may move when the message grows.
        if !matches!(message, HostMessage::IndirectionTable(_)) {
            assert_eq!(HostMessage::decode(&longer, version), Ok(message));
        }
    }
}

/// What is understood has a type that there is.
fn kind(input: &[u8]) {
    let kind = MessageType(u32::from_le_bytes(*input.first_chunk().expect("a type")));
    assert!(kind.name().is_some(), "{kind:?}");
}
