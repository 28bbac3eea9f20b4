//! Control messages between the guest's bus and the host.

use vmbus::Instant;
use vmbus::bus::{Post, PostRetry, PostStatus, PostVerdict};

use super::{Guest, Machine};
use crate::event::What;

impl<M: Machine> Guest<M> {
    /// A control message of the host.
    pub fn handle_message(&mut self, payload: &[u8], now: Instant) {
        if let Err(error) = self.bus.handle_message(payload, now) {
            self.events.push_back(What::Failed { what: format!("message of the host: {error}") });
        }
    }

    /// The next message for the host.
    pub fn poll_outgoing(&mut self) -> Option<Post> {
        self.bus.poll_outgoing()
    }

    /// What the hypervisor said to a message: one that it did not take is put back for later or given up, as `retry` says.
    /// False if it was put back.
    pub fn posted(
        &mut self,
        post: Post,
        status: PostStatus,
        retry: &mut PostRetry,
        now: Instant,
    ) -> bool {
        match retry.result(status, post.payload.kind(), now) {
            PostVerdict::Sent => true,
            PostVerdict::RetryAt(_) => {
                self.bus.put_back(post);
                false
            }
            PostVerdict::GiveUp(status) => {
                self.bus.post_failed(post, status, now);
                true
            }
        }
    }
}
