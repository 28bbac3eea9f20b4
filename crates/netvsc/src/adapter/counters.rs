//! What an adapter counts.

/// What an adapter did. Every frame taken went out on exactly one path first, so that once nothing waits
/// `frames_accepted + frames_cut + frames_resent == frames_vf + frames_synthetic`, if
/// none is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterCounters {
    /// Frames taken from the upper layer.
    pub frames_accepted: u64,
    /// Frames that those are more than that on a wire: of every large send among them, its segments less one, whoever cuts it.
    pub segments_accepted: u64,
    /// Frames sent on VFs.
    pub frames_vf: u64,
    /// Frames sent on the synthetic path, those sent again included.
    pub frames_synthetic: u64,
    /// Frames that came of cutting large sends here: their segments, less one for each.
    pub frames_cut: u64,
    /// Frames sent again since a VF never confirmed them.
    pub frames_resent: u64,
    /// Frames that a VF never confirmed and that the synthetic NIC can never send.
    pub frames_lost: u64,
    /// Frames passed up.
    pub frames_received: u64,
    /// Of these, frames from VFs.
    pub frames_received_vf: u64,
    /// Times that the path went to a VF.
    pub switches_to_vf: u64,
    /// Times that the path went back to synthetic.
    pub switches_to_synthetic: u64,
    /// Times that the VF was asked for again after the host had left it by itself.
    pub switch_retries: u64,
    /// Frames that could not be taken now.
    pub pushed_back: u64,
    /// Frames that can never be sent.
    pub refused: u64,
    /// Frames that a VF did not take for their length and that went out on the synthetic path.
    pub too_long_for_vf: u64,
}

impl core::ops::Add for AdapterCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            frames_accepted: self.frames_accepted + other.frames_accepted,
            segments_accepted: self.segments_accepted + other.segments_accepted,
            frames_vf: self.frames_vf + other.frames_vf,
            frames_synthetic: self.frames_synthetic + other.frames_synthetic,
            frames_cut: self.frames_cut + other.frames_cut,
            frames_resent: self.frames_resent + other.frames_resent,
            frames_lost: self.frames_lost + other.frames_lost,
            frames_received: self.frames_received + other.frames_received,
            frames_received_vf: self.frames_received_vf + other.frames_received_vf,
            switches_to_vf: self.switches_to_vf + other.switches_to_vf,
            switches_to_synthetic: self.switches_to_synthetic + other.switches_to_synthetic,
            switch_retries: self.switch_retries + other.switch_retries,
            pushed_back: self.pushed_back + other.pushed_back,
            refused: self.refused + other.refused,
            too_long_for_vf: self.too_long_for_vf + other.too_long_for_vf,
        }
    }
}
