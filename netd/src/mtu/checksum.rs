// SPDX-License-Identifier: Apache-2.0
//! Some network cards and drivers spoil the checksum of packets inside VXLAN when they are asked to finish
//! it: everything that needs a checksum is lost, everything else arrives. Questions are asked with a
//! checksum, so such a peer seems silent; then it is asked without one.

/// Questions in a row that went unanswered before one without checksum is sent.
const UNANSWERED_MIN: u32 = 4;
/// So many answers to those make it certain: packets may have been lost for other reasons until now.
const PLAIN_ANSWERS_MIN: u32 = 3;

/// What is known of one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChecksumDoubt {
    /// Questions with a checksum since the last answer to one.
    unanswered: u32,
    /// Answers to questions without one since then.
    plain_answers: u32,
}

impl ChecksumDoubt {
    pub(super) fn asked(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
    }

    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    pub(super) fn plainly_answered(&mut self) {
        self.plain_answers = self.plain_answers.saturating_add(1);
    }

    /// Questions in a row without an answer.
    pub(super) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Whether to ask without a checksum.
    pub(super) fn is_due(&self) -> bool {
        self.unanswered >= UNANSWERED_MIN
    }

    /// Only what needs a checksum is lost.
    pub(super) fn is_certain(&self) -> bool {
        self.is_due() && self.plain_answers >= PLAIN_ANSWERS_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loss_of_what_has_a_checksum_is_proof() {
        let mut doubt = ChecksumDoubt::default();
        for _ in 0..UNANSWERED_MIN {
            assert!(!doubt.is_due());
            doubt.asked();
        }
        assert!(doubt.is_due() && !doubt.is_certain(), "a silent peer proves nothing");
        for _ in 0..PLAIN_ANSWERS_MIN {
            assert!(!doubt.is_certain());
            doubt.plainly_answered();
        }
        assert!(doubt.is_certain());
        doubt.answered();
        assert!(!doubt.is_due() && !doubt.is_certain());
    }
}
