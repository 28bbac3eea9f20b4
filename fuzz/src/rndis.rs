//! RNDIS: control messages, the header of frames, and what stands beside them.

use netvsc::rndis::packet::{Layout, PACKET_HEADER, Ppis, write_header};
use netvsc::rndis::{GuestMessage, HostMessage};

/// One message, as one of the guest, of the host, and as the header of a frame; and the same bytes as a list of per-packet
/// information.
pub fn rndis(input: &[u8]) {
    if let Ok(message) = GuestMessage::decode(input) {
        if let GuestMessage::Query { info, .. } | GuestMessage::Set { info, .. } = message {
            inside(input, info);
        }
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(GuestMessage::decode(&again), Ok(message));
    }
    if let Ok(message) = HostMessage::decode(input) {
        match message {
            HostMessage::QueryComplete { info, .. } => inside(input, info),
            HostMessage::Indicate { buffer, .. } => inside(input, buffer),
            _ => {}
        }
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(HostMessage::decode(&again), Ok(message));
    }
    frame(input);
    walk(input);
}

/// A part of a message lies in it.
fn inside(whole: &[u8], part: &[u8]) {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    assert!(part.is_empty() || whole.start <= part.start && part.end <= whole.end);
}

/// The header of a frame: read with all of the message there, and with its first bytes and a length only.
fn frame(input: &[u8]) {
    let total = input.len();
    let layout = Layout::decode(input, total);
    let head = &input[..total.min(PACKET_HEADER)];
    assert_eq!(Layout::decode(head, total), layout, "what stands behind does not count");
    let Ok(layout) = layout else { return };
    assert!(layout.length as usize >= PACKET_HEADER);
    for part in [&layout.data, &layout.ppi] {
        assert!(PACKET_HEADER <= part.start && part.start <= part.end && part.end <= total);
    }
    assert!(!layout.data.is_empty());
    let mut words = Vec::new();
    for ppi in Ppis::new(&input[layout.ppi.clone()]).flatten() {
        inside(&input[layout.ppi.clone()], ppi.data);
        words.extend(ppi.word().map(|word| (ppi.kind, word)));
    }
    // A frame with the same information, as a sender writes it.
    let mut out = vec![0; PACKET_HEADER + 16 * words.len() + layout.data.len()];
    let data_at = PACKET_HEADER + 16 * words.len();
    let written = write_header(&mut out, &words, data_at, layout.data.len());
    assert_eq!(written, Some(data_at));
    let again = Layout::decode(&out, out.len()).expect("what was written is legal");
    assert_eq!((again.data.start, again.data.len()), (data_at, layout.data.len()));
    let found = Ppis::new(&out[again.ppi]).map(|ppi| ppi.map(|ppi| (ppi.kind, ppi.word())));
    let expected = words.into_iter().map(|(kind, word)| Ok((kind, Some(word))));
    assert!(found.eq(expected));
}

/// A list of per-packet information ends, at the first contradiction at the latest.
fn walk(list: &[u8]) {
    let mut walk = Ppis::new(list);
    let mut bytes = 0;
    for _ in 0..=list.len() / 12 {
        match walk.next() {
            Some(Ok(ppi)) => {
                inside(list, ppi.data);
                assert!(ppi.part().is_none() || ppi.data.len() >= 2);
                bytes += 12.max(ppi.data.len());
                assert!(bytes <= list.len(), "more than there is");
            }
            Some(Err(error)) => {
                assert!(error.room <= list.len());
                break;
            }
            None => break,
        }
    }
    assert_eq!(walk.next(), None);
}
