//! An answer of the kernel's, gathered from datagrams until it ends, and asked for again if it is not of one moment.

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use rustix::io::Errno;

use super::NetlinkError;
use super::socket::{Messages, Reply};

/// How often something is asked for anew because it was interrupted.
const TRIES: u32 = 8;
/// Most bytes of one answer that are kept. 65,536 links take some 130 MB.
const LIMIT: usize = 256 << 20;

/// How an answer ended.
#[derive(Debug)]
pub(super) enum Collected {
    Whole(Vec<u8>),
    /// Something changed meanwhile, or a part was dropped.
    Interrupted,
    Refused(std::io::Error),
}

/// What has come of an answer so far.
#[derive(Debug)]
pub(super) struct Answer {
    sequence: u32,
    bytes: Vec<u8>,
    interrupted: bool,
}

impl Answer {
    /// To the question with this number.
    pub(super) const fn to(sequence: u32) -> Self {
        Self { sequence, bytes: Vec::new(), interrupted: false }
    }

    /// Datagrams were dropped: the whole is not whole.
    pub(super) const fn missed(&mut self) {
        self.interrupted = true;
    }

    /// Takes one datagram in; gives how the answer ended, if it did with that.
    pub(super) fn take(&mut self, datagram: &[u8]) -> Option<Collected> {
        for message in Messages(datagram).flatten() {
            if message.sequence_number() != self.sequence {
                continue;
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_DONE if self.interrupted => return Some(Collected::Interrupted),
                NLMSG_DONE => return Some(Collected::Whole(std::mem::take(&mut self.bytes))),
                NLMSG_ERROR => {
                    return Some(match refusal(message.payload()) {
                        None => Collected::Whole(std::mem::take(&mut self.bytes)),
                        Some(Errno::INTR | Errno::AGAIN) => Collected::Interrupted,
                        Some(error) => Collected::Refused(error.into()),
                    });
                }
                _ => {
                    let room = LIMIT.saturating_sub(self.bytes.len());
                    let whole = message.into_inner();
                    if whole.len() <= room {
                        self.bytes.extend_from_slice(whole);
                        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
                    }
                }
            }
        }
        None
    }
}

/// Asks until an answer is of one moment.
pub(super) fn steady(
    doing: &'static str,
    mut ask: impl FnMut() -> Result<Collected, NetlinkError>,
) -> Result<Reply, NetlinkError> {
    for _ in 0..TRIES {
        match ask()? {
            Collected::Whole(bytes) => return Ok(Reply::from_bytes(bytes)),
            Collected::Interrupted => {}
            Collected::Refused(source) => return Err(NetlinkError::Refused { doing, source }),
        }
    }
    Err(NetlinkError::Unsteady { tries: TRIES })
}

/// What an error message says; none for "it is done".
fn refusal(payload: &[u8]) -> Option<Errno> {
    let code = payload.first_chunk::<4>().map_or(-22, |bytes| i32::from_ne_bytes(*bytes));
    (code != 0).then(|| Errno::from_raw_os_error(code.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: u16 = 16;

    /// A message of 20 bytes that answers question 7.
    fn message(kind: u16, flags: u16, payload: i32) -> Vec<u8> {
        let mut bytes = 20_u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&7_u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&payload.to_ne_bytes());
        bytes
    }

    fn gathered(datagrams: &[Vec<u8>]) -> Option<Collected> {
        let mut answer = Answer::to(7);
        datagrams.iter().find_map(|datagram| answer.take(datagram))
    }

    #[test]
    fn an_error_of_zero_is_an_answer() {
        assert_eq!(refusal(&0i32.to_ne_bytes()), None);
        assert_eq!(refusal(&(-1i32).to_ne_bytes()), Some(Errno::PERM));
        assert_eq!(refusal(&[]), Some(Errno::INVAL));
    }

    #[test]
    fn an_answer_goes_over_several_datagrams_and_is_not_mixed_with_others() {
        let two = [message(LINK, 2, 1), message(LINK, 2, 2)].concat();
        let mut strange = message(LINK, 2, 3);
        strange[8] = 8;
        let done = message(NLMSG_DONE, 2, 0);
        let collected = gathered(&[two.clone(), strange, message(LINK, 2, 4), done]);
        let Some(Collected::Whole(bytes)) = collected else { panic!("{collected:?}") };
        assert_eq!(bytes, [two, message(LINK, 2, 4)].concat());
        assert!(gathered(&[message(LINK, 2, 1)]).is_none(), "it goes on");
        let refused = gathered(&[message(NLMSG_ERROR, 0, -1)]);
        assert!(matches!(refused, Some(Collected::Refused(_))), "{refused:?}");
    }

    #[test]
    fn a_mark_of_interruption_anywhere_spoils_the_whole() {
        let done = message(NLMSG_DONE, 2, 0);
        for datagrams in [
            vec![message(LINK, 2 | NLM_F_DUMP_INTR, 1), message(LINK, 2, 2), done.clone()],
            vec![message(LINK, 2, 1), message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, 0)],
            vec![message(NLMSG_ERROR, 0, -4)],
        ] {
            let collected = gathered(&datagrams);
            assert!(matches!(collected, Some(Collected::Interrupted)), "{collected:?}");
        }
        let mut answer = Answer::to(7);
        assert!(answer.take(&message(LINK, 2, 1)).is_none());
        answer.missed();
        assert!(matches!(answer.take(&done), Some(Collected::Interrupted)));
    }

    #[test]
    fn what_was_interrupted_is_asked_for_again_and_not_for_ever() {
        let mut asked = 0;
        let reply = steady("list them", || {
            asked += 1;
            Ok(if asked < 3 { Collected::Interrupted } else { Collected::Whole(vec![1, 2, 3]) })
        });
        assert_eq!((reply.expect("the third").as_bytes(), asked), (&[1, 2, 3][..], 3));
        let mut asked = 0;
        let never = steady("list them", || {
            asked += 1;
            Ok(Collected::Interrupted)
        });
        assert!(matches!(never, Err(NetlinkError::Unsteady { tries: TRIES })) && asked == TRIES);
        let refused = steady("list them", || Ok(Collected::Refused(Errno::PERM.into())));
        assert!(matches!(refused, Err(NetlinkError::Refused { doing: "list them", .. })));
    }
}
