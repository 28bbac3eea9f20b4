//! When to post a message again that the hypervisor did not take.

use core::time::Duration;

use tracing::debug;

use super::{Bus, ContactFailure, Phase, Post, Wait};
use crate::Instant;
use crate::message::{InitiateContact, MessageType, REDIRECTED_CONNECTION};

crate::open_enum! {
    /// What the hypervisor says to a posted message.
    pub struct PostStatus(u16) {
        /// It is on its way.
        SUCCESS = 0,
        /// The hypervisor has no memory for it now.
        INSUFFICIENT_MEMORY = 11,
        /// There is no such connection: at contact the host is too old for it, to any other message it is being rebuilt and
        /// will be there.
        INVALID_CONNECTION_ID = 18,
        /// The host has not read earlier messages yet.
        INSUFFICIENT_BUFFERS = 19,
    }
}

/// What to do after a try to post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostVerdict {
    /// Posted: go on with the next message.
    Sent,
    /// [Put it back](super::Bus::put_back) and post nothing before this moment.
    RetryAt(Instant),
    /// It will never go. [Say so to the bus](super::Bus::post_failed), and post the next: that may be another try at contact.
    GiveUp(PostStatus),
}

/// The rule by which posts are tried again: a delay that doubles, and an end.
///
/// A shell posts what [`Bus::poll_outgoing`](super::Bus::poll_outgoing) yields and hands each result in.
#[derive(Clone, Debug)]
pub struct PostRetry {
    first: Duration,
    longest: Duration,
    tries: u32,
    failures: u32,
    delay: Duration,
    next: Option<Instant>,
}

impl Default for PostRetry {
    /// From 1 µs to 16 ms, 100 tries.
    fn default() -> Self {
        Self::new(Duration::from_micros(1), Duration::from_millis(16), 100)
    }
}

impl PostRetry {
    /// A rule with a delay from `first` to `longest`, and at most `tries` tries for each message.
    #[must_use]
    pub fn new(first: Duration, longest: Duration, tries: u32) -> Self {
        Self { first, longest, tries, failures: 0, delay: first, next: None }
    }

    /// The result of a post of a message of this kind. That the connection is missing is passing for all but
    /// [`MessageType::INITIATE_CONTACT`], to which it is the answer of a host that is too old: waiting for another would be
    /// waiting for ever. Whatever else is sent belongs to a connection that was there, the farewell too.
    pub fn result(&mut self, status: PostStatus, kind: MessageType, now: Instant) -> PostVerdict {
        self.next = None;
        let passing = match status {
            PostStatus::INSUFFICIENT_MEMORY | PostStatus::INSUFFICIENT_BUFFERS => true,
            PostStatus::INVALID_CONNECTION_ID => kind != MessageType::INITIATE_CONTACT,
            _ => false,
        };
        if status == PostStatus::SUCCESS {
            self.forget();
            return PostVerdict::Sent;
        }
        self.failures = self.failures.saturating_add(1);
        if !passing || self.failures >= self.tries {
            self.forget();
            return PostVerdict::GiveUp(status);
        }
        let at = now + self.delay;
        self.delay = self.delay.saturating_mul(2).min(self.longest);
        self.next = Some(at);
        PostVerdict::RetryAt(at)
    }

    /// Whether a message may be posted at `now`.
    #[must_use]
    pub fn ready(&self, now: Instant) -> bool {
        self.next.is_none_or(|at| at <= now)
    }

    /// When the next try is due, if one was put off.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.next
    }

    fn forget(&mut self) {
        self.failures = 0;
        self.delay = self.first;
    }
}

impl Bus {
    /// Takes note of a message that will never be posted: what to call after [`PostVerdict::GiveUp`].
    ///
    /// A host older than 5.0 does not have the connection on which newer versions are asked for, so that
    /// [`PostStatus::INVALID_CONNECTION_ID`] is its way to refuse them (Linux takes it for that in `vmbus_post_msg`): if the
    /// message is the contact that the bus waits for, the bus asks for its next version; or for the same on the usual
    /// connection, where a guest in VTL 2 tried that for redirected messages. With any other status, or when there is no
    /// other version, contact ends in [`ContactFailure::NotPosted`].
    ///
    /// Any other message is lost. The answer to it, if one is awaited, will not come and is reported as
    /// [overdue](super::Event::Overdue) in its time; a message without an answer is missed by the host alone. A new contact
    /// mends either.
    pub fn post_failed(&mut self, post: Post, status: PostStatus, now: Instant) {
        let (kind, version) = (post.payload.kind(), self.version);
        self.stats.unposted += 1;
        let Phase::Contacting(index) = self.phase else {
            debug!(%kind, %status, "a message was never posted");
            return;
        };
        // A contact of an earlier try may be among the messages, which nobody waits for any more.
        let asks = |contact: &InitiateContact| contact.version.get() == version.0;
        let awaited = post.connection == self.connection && post.payload.body().is_some_and(asks);
        if !awaited {
            debug!(%kind, %status, "a message of an earlier connection was never posted");
            return;
        }
        self.disarm(Wait::Contact { version });
        let next = match (status, post.connection) {
            // Not every host redirects; the same version is asked for where all others are.
            (PostStatus::INVALID_CONNECTION_ID, REDIRECTED_CONNECTION) => {
                self.redirected = false;
                Some(index)
            }
            (PostStatus::INVALID_CONNECTION_ID, _) => Some(index.saturating_add(1)),
            _ => None,
        };
        if !next.is_some_and(|index| self.contact(index, now)) {
            self.fail_contact(ContactFailure::NotPosted { version, status });
        }
    }
}
