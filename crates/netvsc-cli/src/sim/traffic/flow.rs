//! One flow: which of its frames have arrived, and whether in order.

use std::collections::BTreeSet;

use super::frame::Headers;

/// The frames of one conversation in one direction. None may overtake another.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) headers: Headers,
    pub(super) sent: u64,
    /// The number after the highest that arrived.
    expected: u64,
    /// Numbers below that have not arrived.
    missing: BTreeSet<u64>,
    pub(super) duplicates: u64,
    /// Numbers below may come in any order: the way has changed since they were sent.
    unordered: u64,
    /// Numbers that went down with what carried them, none of them by a fault of a path.
    forgiven: BTreeSet<u64>,
}

impl Flow {
    pub(super) const fn new(headers: Headers) -> Self {
        Self {
            headers,
            sent: 0,
            expected: 0,
            missing: BTreeSet::new(),
            duplicates: 0,
            unordered: 0,
            forgiven: BTreeSet::new(),
        }
    }

    pub(super) const fn way_changed(&mut self) {
        self.unordered = self.sent;
    }

    pub(super) fn carrier_gone(&mut self) {
        self.forgiven.extend(&self.missing);
        self.forgiven.extend(self.expected..self.sent);
        self.way_changed();
    }

    /// The frame with this number has arrived.
    ///
    /// # Errors
    /// What is wrong with that.
    pub(super) fn arrived(&mut self, number: u64) -> Result<(), String> {
        if number >= self.sent {
            return Err(format!("frame {number} arrived, {} were sent", self.sent));
        }
        if number < self.expected {
            if self.missing.remove(&number) {
                self.forgiven.remove(&number);
                if number >= self.unordered {
                    return Err(format!("frame {number} was overtaken"));
                }
            } else {
                self.duplicates += 1;
            }
            return Ok(());
        }
        self.forgiven.remove(&number);
        self.missing.extend(self.expected..number);
        self.expected = number + 1;
        Ok(())
    }

    /// Frames that were sent and have not arrived, but for those whose carrier is gone.
    pub(super) fn lacking(&self) -> u64 {
        self.sent - self.expected + self.missing.len() as u64 - self.forgiven.len() as u64
    }
}
