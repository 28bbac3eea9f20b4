use super::message::WireError;
use super::*;
use proptest::prelude::*;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vmbus::Instant;

const NOW: Instant = Instant::ZERO;
const BUS: Guid = Guid::from_u128(0x1234);

fn hello() -> Message {
    Message::Hello { lowest: Version::V1, highest: Version::V1, features: Features::all() }
}

/// One of each kind.
fn all() -> Vec<Message> {
    let account = Account { arrived: 1, given: 2, dropped: 3, ..Account::default() };
    vec![
        hello(),
        Message::Share { pages: 0x102, first: 0x304 },
        Message::AskAccount,
        Message::Welcome { version: Version::V1, features: Features::WINDOWS },
        Message::Ready { windows: 9 },
        Message::Window { instance: BUS, first: 3, ports: 2 },
        Message::WindowGone { instance: BUS },
        Message::Account(Account { received_orderly: 7, ..account }),
        Message::Refused { why: Reason::BUSY, detail: 5 },
    ]
}

fn decode(bytes: &[u8], descriptors: usize) -> Result<Option<(Message, Vec<usize>)>, WireError> {
    let mut decoder = Decoder::default();
    decoder.push(bytes, 0..descriptors);
    decoder.next_message()
}

#[test]
fn messages_have_the_bytes_of_the_document() {
    let bytes = |message: Message| message.encode();
    let mut expected = vec![1, 0, 0, 0, 24, 0, 0, 0];
    expected.extend(b"netvsc\0\0\x01\0\x01\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    assert_eq!(bytes(hello()), expected);
    assert_eq!(
        bytes(Message::Share { pages: 0x102, first: 0x304 }),
        [2, 0, 0, 0, 16, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(bytes(Message::AskAccount), [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        bytes(Message::Refused { why: Reason::VERSION, detail: 0x201 }),
        [6, 1, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0]
    );
    let window = bytes(Message::Window { instance: BUS, first: 3, ports: 2 });
    assert_eq!(window[..8], [3, 1, 0, 0, 24, 0, 0, 0]);
    assert_eq!(window[8..24], *BUS.as_bytes());
    assert_eq!(window[24..], [3, 0, 0, 0, 2, 0, 0, 0]);
}

#[test]
fn every_message_is_read_back_in_any_pieces_and_none_is_longer_than_the_bound() {
    for message in all() {
        let bytes = message.encode();
        assert!(bytes.len() <= MAX_MESSAGE && message.descriptors() <= MAX_DESCRIPTORS);
        let descriptors: Vec<usize> = (0..message.descriptors()).collect();
        let mut decoder = Decoder::default();
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(decoder.next_message().unwrap(), None, "{message:?}");
            let with = if at == 0 { descriptors.clone() } else { Vec::new() };
            decoder.push(&[*byte], with);
        }
        assert_eq!(decoder.next_message().unwrap(), Some((message, descriptors)));
        assert_eq!(decoder.next_message().unwrap(), None);
    }
}

#[test]
fn a_kind_or_size_that_there_is_none_of_is_an_error_before_the_rest_has_come() {
    let error = decode(&[7, 0, 0, 0, 0, 0, 0, 0], 0).unwrap_err();
    assert_eq!(error, WireError::Kind(MessageKind(7)));
    assert!(error.to_string().contains("MessageKind(0x7)"), "{error}");
    for got in [0, 23, 25, u32::MAX] {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend(got.to_le_bytes());
        let expected = WireError::Size { kind: MessageKind::HELLO, expected: 24, got };
        assert_eq!(decode(&bytes, 0), Err(expected));
    }
}

#[test]
fn a_hello_of_something_else_is_refused() {
    let mut bytes = hello().encode();
    bytes[8] = b'N';
    assert!(matches!(decode(&bytes, 0), Err(WireError::Magic(_))));
    let (lowest, highest) = (Version(3), Version(2));
    let bytes = Message::Hello { lowest, highest, features: Features::all() }.encode();
    assert_eq!(decode(&bytes, 0), Err(WireError::Versions { lowest, highest }));
}

#[test]
fn features_of_newer_guests_are_no_error_and_not_used() {
    let features = Features::from_bits_retain(u64::MAX);
    let bytes = Message::Hello { lowest: Version(1), highest: Version(1), features }.encode();
    assert_eq!(decode(&bytes, 0).unwrap().unwrap().0, hello());
}

#[test]
fn descriptors_are_counted() {
    for message in all() {
        let (kind, expected) = (message.kind(), message.descriptors());
        for got in 0..=MAX_DESCRIPTORS {
            let decoded = decode(&message.encode(), got);
            if got == expected {
                assert!(decoded.is_ok());
            } else {
                assert_eq!(decoded, Err(WireError::Descriptors { kind, expected, got }));
            }
        }
    }
    assert_eq!(decode(&[], 4), Err(WireError::Flood(4)));
}

#[test]
fn descriptors_may_come_with_the_message_before_theirs() {
    let mut bytes = hello().encode();
    let share = Message::Share { pages: 7, first: 1 };
    bytes.extend(share.encode());
    let mut decoder = Decoder::default();
    decoder.push(&bytes, [10, 11, 12]);
    assert_eq!(decoder.next_message().unwrap(), Some((hello(), vec![])));
    assert_eq!(decoder.next_message().unwrap(), Some((share, vec![10, 11, 12])));
}

proptest! {
    #[test]
    fn whatever_comes_is_a_message_or_an_error(
        pieces in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..80), 0_usize..3), 0..8),
    ) {
        let mut decoder = Decoder::default();
        'all: for (bytes, descriptors) in pieces {
            decoder.push(&bytes, 0..descriptors);
            loop {
                match decoder.next_message() {
                    Ok(Some((message, got))) => prop_assert_eq!(message.descriptors(), got.len()),
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
        }
    }

    #[test]
    fn streams_come_apart_as_they_were_put_together(
        which in proptest::collection::vec(0_usize..9, 0..20), cut in 1_usize..90,
    ) {
        let kinds = all();
        let messages: Vec<_> = which.into_iter().map(|at| kinds[at]).collect();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for message in &messages {
            for (at, piece) in message.encode().chunks(cut).enumerate() {
                decoder.push(piece, 0..if at == 0 { message.descriptors() } else { 0 });
                while let Some((message, _)) = decoder.next_message().unwrap() {
                    seen.push(message);
                }
            }
        }
        prop_assert_eq!(seen, messages);
    }

    /// Whatever a peer says in whatever order, neither side panics, and a side that gave up stays so.
    #[test]
    fn any_order_of_messages_is_survived(
        which in proptest::collection::vec((0_usize..9, 0_u32..2000, 0_u32..4), 0..40),
    ) {
        let mut host = HostSide::new(Features::all(), NOW);
        let mut guest = GuestSide::new(Features::all());
        let kinds = all();
        for (at, first, ports) in which {
            let message = match kinds[at] {
                Message::Window { instance, .. } => Message::Window { instance, first, ports },
                Message::Ready { .. } => Message::Ready { windows: first },
                other => other,
            };
            let descriptors: Vec<usize> = (0..message.descriptors()).collect();
            let refused = host.is_refused();
            if host.handle(message, descriptors.clone()).is_err() || refused {
                prop_assert!(host.is_refused());
            }
            let _ = guest.handle(message, descriptors);
            while let Some(event) = host.poll_event() {
                match event {
                    HostEvent::Shared(_) => host.ready(1, 8),
                    HostEvent::AccountAsked => host.account(Account::default()),
                }
            }
            while let Some(event) = guest.poll_event() {
                match event {
                    GuestEvent::Welcome { .. } => guest.share(7, 1, 1, 2, 3),
                    GuestEvent::Window { first, ports, .. } => {
                        prop_assert!(ports > 0 && first + ports <= MOST_WINDOWS);
                    }
                    _ => {}
                }
            }
            while host.poll_outgoing().is_some() || guest.poll_outgoing().is_some() {}
        }
    }
}

/// Hands everything from one side to the other until neither has anything to say.
fn carry(guest: &mut GuestSide<usize>, host: &mut HostSide<usize>) {
    loop {
        let mut moved = false;
        while let Some((message, descriptors)) = guest.poll_outgoing() {
            host.handle(message, descriptors).unwrap();
            moved = true;
        }
        while let Some((message, descriptors)) = host.poll_outgoing() {
            guest.handle(message, descriptors).unwrap();
            moved = true;
        }
        if !moved {
            return;
        }
    }
}

/// A guest and a host that have found each other; the host has eight pages of registers.
fn met() -> (GuestSide<usize>, HostSide<usize>) {
    let (mut guest, mut host) =
        (GuestSide::new(Features::all()), HostSide::new(Features::all(), NOW));
    carry(&mut guest, &mut host);
    let (version, features) = (Version::V1, Features::WINDOWS);
    assert_eq!(guest.poll_event(), Some(GuestEvent::Welcome { version, features }));
    guest.share(64, 0x100, 1, 2, 3);
    carry(&mut guest, &mut host);
    let offer = Offer { pages: 64, first: 0x100, memory: 1, to_host: 2, to_guest: 3 };
    assert_eq!(host.poll_event(), Some(HostEvent::Shared(offer)));
    assert!(!host.is_ready());
    host.ready(4, 8);
    carry(&mut guest, &mut host);
    assert_eq!(guest.poll_event(), Some(GuestEvent::Ready { registers: 4, pages: 8 }));
    assert!(host.is_ready() && host.poll_deadline().is_none());
    (guest, host)
}

#[test]
fn a_guest_and_a_host_meet_and_talk_of_registers_and_frames() {
    let (mut guest, mut host) = met();
    host.window(BUS, 2, 1);
    host.window_gone(BUS);
    host.window(BUS, 2, 1);
    carry(&mut guest, &mut host);
    let window = GuestEvent::Window { instance: BUS, first: 2, ports: 1 };
    assert_eq!(guest.poll_event(), Some(window.clone()));
    assert_eq!(guest.poll_event(), Some(GuestEvent::WindowGone { instance: BUS }));
    assert_eq!(guest.poll_event(), Some(window));
    for arrived in 0..3 {
        guest.ask_account();
        guest.ask_account();
        carry(&mut guest, &mut host);
        assert_eq!(host.poll_event(), Some(HostEvent::AccountAsked));
        assert_eq!(host.poll_event(), None, "asked once");
        let account = Account { arrived, ..Account::default() };
        host.account(account);
        host.account(account);
        carry(&mut guest, &mut host);
        assert_eq!(guest.poll_event(), Some(GuestEvent::Account(account)));
        assert_eq!(guest.poll_event(), None, "answered once");
    }
}

#[test]
fn a_guest_that_does_not_know_of_registers_hears_nothing_of_them() {
    let mut guest = GuestSide::new(Features::empty());
    let mut host = HostSide::new(Features::all(), NOW);
    carry(&mut guest, &mut host);
    guest.share(64, 1, 1, 2, 3);
    carry(&mut guest, &mut host);
    host.ready(4, 8);
    host.window(BUS, 0, 1);
    host.window_gone(BUS);
    assert!(matches!(host.poll_outgoing(), Some((Message::Ready { .. }, _))));
    assert_eq!(host.poll_outgoing(), None);
}

#[test]
fn versions_are_negotiated_or_the_guest_is_sent_away() {
    let said = |lowest, highest| {
        let mut host = HostSide::<usize>::new(Features::all(), NOW);
        let (lowest, highest) = (Version(lowest), Version(highest));
        let features = Features::all();
        host.handle(Message::Hello { lowest, highest, features }, vec![]).unwrap();
        host.poll_outgoing().unwrap().0
    };
    let welcome = Message::Welcome { version: Version::V1, features: Features::all() };
    let refused = Message::Refused { why: Reason::VERSION, detail: 1 };
    assert_eq!((said(1, 1), said(0, 9)), (welcome, welcome));
    assert_eq!((said(2, 9), said(0, 0)), (refused, refused));
    let mut guest = GuestSide::<usize>::new(Features::all());
    let got = Version(2);
    let error = guest
        .handle(Message::Welcome { version: got, features: Features::empty() }, vec![])
        .unwrap_err();
    assert_eq!(error, ProtocolError::Version { lowest: Version(1), highest: Version(1), got });
}

#[test]
fn a_host_cannot_choose_what_was_not_offered() {
    let mut guest = GuestSide::<usize>::new(Features::empty());
    let (offered, got) = (Features::empty(), Features::WINDOWS);
    let welcome = Message::Welcome { version: Version::V1, features: got };
    let error = guest.handle(welcome, vec![]).unwrap_err();
    assert_eq!(error, ProtocolError::Features { offered, got });
}

#[test]
fn a_guest_that_takes_too_long_is_sent_away() {
    let mut host = HostSide::<usize>::new(Features::all(), NOW);
    let by = host.poll_deadline().unwrap();
    host.handle_deadline(NOW + Duration::from_millis(4_999));
    assert!(!host.is_refused());
    // It has not shared anything after its greeting either.
    host.handle(hello(), vec![]).unwrap();
    assert_eq!(host.poll_deadline(), Some(by));
    host.handle_deadline(by);
    assert!(host.is_refused() && host.poll_deadline().is_none());
    let _welcome = host.poll_outgoing();
    let late = Message::Refused { why: Reason::LATE, detail: 0 };
    assert_eq!(host.poll_outgoing().unwrap().0, late);
    host.handle(hello(), vec![]).unwrap();
    assert_eq!(host.poll_outgoing(), None, "nothing is said after that");
}

#[test]
fn whatever_is_not_the_guests_turn_ends_it() {
    let order = |host: &mut HostSide<usize>, message: Message| {
        let descriptors = (0..message.descriptors()).collect();
        let error = host.handle(message, descriptors).unwrap_err();
        assert!(host.is_refused());
        assert!(
            matches!(error, ProtocolError::Order { got, .. } if got == message.kind()),
            "{error}"
        );
    };
    for message in all() {
        if message.kind() != MessageKind::HELLO {
            order(&mut HostSide::new(Features::all(), NOW), message);
        }
        if message.kind() != MessageKind::SHARE {
            let mut host = HostSide::new(Features::all(), NOW);
            host.handle(hello(), vec![]).unwrap();
            order(&mut host, message);
        }
        let mut host = HostSide::new(Features::all(), NOW);
        host.handle(hello(), vec![]).unwrap();
        host.handle(Message::Share { pages: 64, first: 1 }, vec![1, 2, 3]).unwrap();
        order(&mut host, message);
        if message.kind() != MessageKind::ASK_ACCOUNT {
            order(&mut met().1, message);
        }
    }
    let (_, mut host) = met();
    host.handle(Message::AskAccount, vec![]).unwrap();
    assert_eq!(host.handle(Message::AskAccount, vec![]), Err(ProtocolError::Impatient));
}

#[test]
fn memory_has_a_size_and_a_place() {
    for (pages, first) in [
        (LEAST_PAGES - 1, 0),
        (0, 0),
        (MOST_PAGES + 1, 0),
        (LEAST_PAGES, FRAMES_END - LEAST_PAGES + 1),
        (LEAST_PAGES, u64::MAX),
        (u64::MAX, 1),
    ] {
        let mut host = HostSide::new(Features::all(), NOW);
        host.handle(hello(), vec![]).unwrap();
        let share = Message::Share { pages, first };
        assert_eq!(host.handle(share, vec![1, 2, 3]), Err(ProtocolError::Memory { pages, first }));
    }
    for (pages, first) in [(LEAST_PAGES, FRAMES_END - LEAST_PAGES), (MOST_PAGES, 0)] {
        let mut host = HostSide::new(Features::all(), NOW);
        host.handle(hello(), vec![]).unwrap();
        host.handle(Message::Share { pages, first }, vec![1, 2, 3]).unwrap();
    }
}

#[test]
fn whatever_is_not_the_hosts_turn_ends_it() {
    let order = |guest: &mut GuestSide<usize>, message: Message| {
        let descriptors = (0..message.descriptors()).collect();
        let error = guest.handle(message, descriptors).unwrap_err();
        assert!(
            matches!(error, ProtocolError::Order { got, .. } if got == message.kind()),
            "{error}"
        );
    };
    let refusal = MessageKind::REFUSED;
    for message in all().into_iter().filter(|message| message.kind() != refusal) {
        let welcomed = || {
            let mut guest = GuestSide::new(Features::all());
            let welcome = Message::Welcome { version: Version::V1, features: Features::all() };
            guest.handle(welcome, vec![]).unwrap();
            guest
        };
        if message.kind() != MessageKind::WELCOME {
            order(&mut GuestSide::new(Features::all()), message);
        }
        order(&mut welcomed(), message);
        if message.kind() != MessageKind::READY {
            let mut guest = welcomed();
            guest.share(64, 1, 1, 2, 3);
            order(&mut guest, message);
        }
        if message.kind().0 < 0x103 {
            order(&mut met().0, message);
        }
        let mut guest = GuestSide::new(Features::all());
        guest.handle(Message::Refused { why: Reason::BUSY, detail: 0 }, vec![]).unwrap();
        assert!(guest.is_refused());
        order(&mut guest, message);
    }
    let (mut guest, _) = met();
    let account = Message::Account(Account::default());
    assert_eq!(guest.handle(account, vec![]), Err(ProtocolError::Unasked));
}

#[test]
fn registers_lie_on_pages_of_their_own() {
    let window = |instance, first, ports| Message::Window {
        instance: Guid::from_u128(instance),
        first,
        ports,
    };
    for (first, ports) in [(0, 0), (8, 1), (7, 2), (u32::MAX, 1), (1, u32::MAX)] {
        let (mut guest, _) = met();
        let error = guest.handle(window(1, first, ports), vec![]).unwrap_err();
        assert_eq!(error, ProtocolError::Window { first, ports, pages: 8 });
    }
    let (mut guest, _) = met();
    guest.handle(window(1, 2, 3), vec![]).unwrap();
    guest.handle(window(2, 5, 3), vec![]).unwrap();
    for (bus, page, ports) in [(3, 1, 2), (3, 4, 1), (3, 0, 8), (1, 0, 1)] {
        let error = guest.handle(window(bus, page, ports), vec![]).unwrap_err();
        let instance = Guid::from_u128(bus);
        assert_eq!(error, ProtocolError::WindowTaken { instance, page });
    }
    let instance = Guid::from_u128(9);
    let error = guest.handle(Message::WindowGone { instance }, vec![]).unwrap_err();
    assert_eq!(error, ProtocolError::NoWindow(instance));
    for windows in [0, MOST_WINDOWS + 1] {
        let mut guest = GuestSide::new(Features::all());
        let welcome = Message::Welcome { version: Version::V1, features: Features::all() };
        guest.handle(welcome, vec![]).unwrap();
        guest.share(64, 1, 1, 2, 3);
        let error = guest.handle(Message::Ready { windows }, vec![4]).unwrap_err();
        assert_eq!(error, ProtocolError::WindowPages(windows));
    }
}

#[test]
fn descriptors_arrive_with_their_message_over_a_socket() {
    let (one, two) = UnixStream::pair().unwrap();
    let (mut one, mut two) = (Link::new(one).unwrap(), Link::new(two).unwrap());
    let bell = Bell::new().unwrap();
    let handles = || -> Vec<OwnedFd> { (0..3).map(|_| bell.handle().unwrap()).collect() };
    one.send(&hello(), vec![]).unwrap();
    one.send(&Message::Share { pages: 7, first: 1 }, handles()).unwrap();
    let got = two.receive().unwrap();
    assert_eq!(
        got.iter().map(|(message, fds)| (message.kind(), fds.len())).collect::<Vec<_>>(),
        [(MessageKind::HELLO, 0), (MessageKind::SHARE, 3)]
    );
    let (_, descriptors) = got.into_iter().next_back().unwrap();
    Bell::adopt(descriptors.into_iter().next_back().unwrap()).unwrap().ring();
    assert!(bell.take());
    assert!(two.receive().unwrap().is_empty());
    drop(one);
    assert!(matches!(two.receive(), Err(LinkError::HungUp)));
    assert!(matches!(two.send(&hello(), vec![]), Err(LinkError::HungUp)));
}

#[test]
fn nonsense_and_too_many_descriptors_end_a_link() {
    let (mut one, two) = UnixStream::pair().unwrap();
    let mut two = Link::new(two).unwrap();
    one.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(matches!(two.receive(), Err(LinkError::Wire(WireError::Kind(_)))));

    for (count, truncated) in [(5, false), (20, true)] {
        let (one, two) = UnixStream::pair().unwrap();
        let mut two = Link::new(two).unwrap();
        let bell = Bell::new().unwrap();
        let descriptors = vec![bell.as_fd(); count];
        let mut space = vec![std::mem::MaybeUninit::uninit(); 256];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = hello().encode();
        let pieces = [std::io::IoSlice::new(&bytes)];
        rustix::net::sendmsg(&one, &pieces, &mut control, rustix::net::SendFlags::empty()).unwrap();
        let error = two.receive().unwrap_err();
        match truncated {
            true => assert!(matches!(error, LinkError::Truncated), "{error}"),
            false => assert!(matches!(error, LinkError::Wire(WireError::Flood(5))), "{error}"),
        }
    }
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (one, _two) = UnixStream::pair().unwrap();
    let mut one = Link::new(one).unwrap();
    let error = loop {
        if let Err(error) = one.send(&Message::WindowGone { instance: BUS }, vec![]) {
            break error;
        }
    };
    assert!(matches!(error, LinkError::Deaf), "{error}");
    assert!(one.wants_to_write());
}

#[test]
fn talk_goes_through_the_first_pages() {
    let frames: Vec<_> = (0..6).map(vmbus::Pfn).collect();
    let memory = vmbus::memory::SharedPages::from_heap(&frames);
    let (guest, host) = (Talk::new(&memory).unwrap(), Talk::new(&memory).unwrap());
    host.messages.post(&[1; 8]).unwrap();
    guest.posts.post(&[2; 8]).unwrap();
    assert!(guest.signals.set(3).unwrap() && guest.doorbells.set(4).unwrap());
    assert!(host.events.set(5).unwrap() && host.interrupts.set(6).unwrap());
    assert_eq!(guest.messages.take().unwrap().payload.unwrap()[..], [1; 8]);
    assert_eq!(host.posts.take().unwrap().payload.unwrap()[..], [2; 8]);
    for (flags, expected) in
        [(&host.signals, 3), (&host.doorbells, 4), (&guest.events, 5), (&guest.interrupts, 6)]
    {
        let mut seen = vec![];
        flags.take(|flag| seen.push(flag));
        assert_eq!(seen, [expected]);
    }
    assert!(Talk::new(&memory.slice(0, 5).unwrap()).is_none());
    assert_eq!(Talk::flag_of(0x2001), Some(1));
    assert_eq!((Talk::flag_of(0x1fff), Talk::flag_of(0x2800)), (None, None));
}
