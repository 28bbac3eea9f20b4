//! The socket between a guest and a host in two processes.

use netvsc_linux::socket::{
    Account, Decoder, Features, GuestEvent, GuestSide, HostEvent, HostSide, MAX_DESCRIPTORS,
    MAX_MESSAGE, Message, Reason, WireError,
};
use vmbus::{Guid, Instant};

/// Descriptors that a guest of ours shares, and those of a host: no peer has such.
const OWN: u32 = 1 << 16;

/// What the peer sends, in pieces as they are received: for each a byte that says how many bytes follow, and one of which the low
/// bits say how many descriptors come with them and the others what this side does on its own then.
///
/// Descriptors come out with messages in their order, each once. What is understood, said again, is understood as the same. However
/// the stream is cut into pieces, it gives the same messages and the same error. Neither side ever holds more of the peer's than
/// a message and its descriptors.
pub fn socket(input: &[u8]) {
    let (mut decoder, mut whole) = (Decoder::default(), Vec::new());
    let mut sides = Sides::new();
    let (mut next, mut taken, mut wrong) = (0, 0, None);
    let mut understood = Vec::new();
    let mut rest = input;
    while let [len, more, bytes @ ..] = rest {
        let (piece, behind) = bytes.split_at((*len as usize).min(bytes.len()));
        rest = behind;
        let descriptors = u32::from(more & 3);
        decoder.push(piece, next..next + descriptors);
        next += descriptors;
        whole.extend_from_slice(piece);
        loop {
            match decoder.next_message() {
                Ok(Some((message, descriptors))) => {
                    for descriptor in &descriptors {
                        assert_eq!(*descriptor, taken, "in order, each once");
                        taken += 1;
                    }
                    said_again(&message);
                    understood.push(message);
                    sides.hear(message, &descriptors);
                }
                Ok(None) => break,
                Err(error) => {
                    wrong = Some(error);
                    break;
                }
            }
        }
        if wrong.is_some() {
            break;
        }
        assert!(next - taken <= MAX_DESCRIPTORS as u32, "no more wait than a message has");
        sides.act(more >> 2);
    }
    in_other_pieces(&whole, &understood, wrong);
}

/// A message says what it means.
fn said_again(message: &Message) {
    let bytes = message.encode();
    assert!(bytes.len() <= MAX_MESSAGE);
    let mut decoder = Decoder::default();
    for at in 0..message.descriptors() {
        decoder.push(&[], [at]);
    }
    decoder.push(&bytes, []);
    let again = decoder.next_message().expect("a message").expect("in full");
    assert_eq!((again.0, again.1.len()), (*message, message.descriptors()));
    assert!(decoder.next_message().expect("nothing more").is_none());
}

/// The same bytes one by one, with as many descriptors as each message wants: what is wrong with the bytes is wrong however they come.
fn in_other_pieces(whole: &[u8], understood: &[Message], wrong: Option<WireError>) {
    let mut decoder = Decoder::<()>::default();
    let mut expected = understood.iter();
    let mut upcoming = expected.next();
    decoder.push(&[], (0..upcoming.map_or(0, Message::descriptors)).map(|_| ()));
    for byte in whole {
        decoder.push(&[*byte], []);
        match decoder.next_message() {
            Ok(None) => {}
            Ok(Some((message, _))) => {
                // Behind the last that was understood there can be one that only lacked its descriptors.
                let Some(known) = upcoming else {
                    assert!(
                        matches!(wrong, Some(WireError::Descriptors { .. } | WireError::Flood(_))),
                        "{message:?} was not understood: {wrong:?}"
                    );
                    return;
                };
                assert_eq!(message, *known);
                upcoming = expected.next();
                decoder.push(&[], (0..upcoming.map_or(0, Message::descriptors)).map(|_| ()));
            }
            Err(error) => {
                assert!(upcoming.is_none(), "{error} before {upcoming:?}");
                let by_descriptors =
                    |error| matches!(error, WireError::Descriptors { .. } | WireError::Flood(_));
                let same = wrong == Some(error);
                assert!(
                    same || by_descriptors(error) || wrong.is_some_and(by_descriptors),
                    "{error}"
                );
                return;
            }
        }
    }
}

/// A host and a guest that hear the same peer.
struct Sides {
    host: Option<HostSide<u32>>,
    guest: Option<GuestSide<u32>>,
    asked: bool,
}

impl Sides {
    fn new() -> Self {
        let guest = Some(GuestSide::new(Features::all()));
        Self { host: Some(HostSide::new(Features::all(), Instant::ZERO)), guest, asked: false }
    }

    /// Both hear a message; one that it breaks the rules for hangs up.
    fn hear(&mut self, message: Message, descriptors: &[u32]) {
        if let Some(host) = &mut self.host {
            let heard = host.handle(message, descriptors.to_vec());
            while let Some(event) = host.poll_event() {
                match event {
                    HostEvent::Shared(offer) => {
                        let own = [offer.memory, offer.to_host, offer.to_guest];
                        assert_eq!(own, *descriptors, "what came with the message");
                        assert!(!host.is_ready());
                        host.ready(OWN, 64);
                    }
                    HostEvent::AccountAsked => host.account(Account::default()),
                }
            }
            while let Some((message, descriptors)) = host.poll_outgoing() {
                assert_eq!(descriptors.len(), message.descriptors(), "{message:?}");
                assert!(descriptors.iter().all(|descriptor| *descriptor == OWN));
            }
            if heard.is_err() {
                self.host = None;
            }
        }
        let Some(guest) = &mut self.guest else { return };
        let heard = guest.handle(message, descriptors.to_vec());
        while let Some(event) = guest.poll_event() {
            match event {
                GuestEvent::Welcome { .. } => guest.share(64, 0x100, OWN, OWN + 1, OWN + 2),
                GuestEvent::Ready { registers, .. } => assert_eq!([registers], *descriptors),
                GuestEvent::Account(_) => {
                    assert!(self.asked, "an answer to a question");
                    self.asked = false;
                }
                GuestEvent::Window { .. }
                | GuestEvent::WindowGone { .. }
                | GuestEvent::Refused { .. } => {}
            }
        }
        while let Some((message, descriptors)) = guest.poll_outgoing() {
            assert_eq!(descriptors.len(), message.descriptors(), "{message:?}");
            self.asked |= message == Message::AskAccount;
        }
        if heard.is_err() {
            self.guest = None;
        }
    }

    /// What a shell may do at any moment.
    fn act(&mut self, what: u8) {
        let bus = Guid::from_u128(what.into());
        if let Some(host) = self.host.as_mut().filter(|host| host.is_ready()) {
            match what & 7 {
                1 => host.window(bus, 0, 1),
                2 => host.window_gone(bus),
                _ => {}
            }
        }
        if let Some(host) = &mut self.host {
            match what & 7 {
                3 => host.refuse(Reason::BUSY, 0),
                4 => {
                    if let Some(by) = host.poll_deadline() {
                        host.handle_deadline(by);
                        assert!(host.is_refused());
                    }
                }
                _ => {}
            }
            while host.poll_outgoing().is_some() {}
        }
        if let Some(guest) = &mut self.guest
            && what & 8 != 0
        {
            guest.ask_account();
            while let Some((message, _)) = guest.poll_outgoing() {
                self.asked |= message == Message::AskAccount;
            }
        }
    }
}
