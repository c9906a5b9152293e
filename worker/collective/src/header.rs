//! What goes ahead of every message, so that ranks which do not match are an error and not a wrong number.
//!
//! Gloo ends the process when a message is longer than its buffer, and NCCL hangs or writes past one. So each message
//! is announced by 32 bytes of fixed length: whose group it is, which step of it, which operation, how many bytes.

use crate::CollectiveError;

/// Length of an announcement, in bytes.
pub(crate) const LENGTH: usize = 32;

/// An announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Drawn by rank 0 while the group formed: nothing of another group or epoch has it.
    pub(crate) token: u64,
    /// Which collective operation of the group this is; 0 between two ranks.
    pub(crate) step: u64,
    /// The operation's kind, and the tag above it.
    pub(crate) kind: u64,
    /// The payload's length in bytes.
    pub(crate) bytes: u64,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; LENGTH] {
        let mut encoded = [0; LENGTH];
        for (place, word) in encoded.chunks_exact_mut(8).zip([self.token, self.step, self.kind, self.bytes]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        encoded
    }

    pub(crate) fn decode(encoded: [u8; LENGTH]) -> Self {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&encoded[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        };
        Self { token: word(0), step: word(1), kind: word(2), bytes: word(3) }
    }

    /// Compares what a peer announced with what this rank does; `strict` compares lengths too.
    pub(crate) fn check(
        self,
        found: Self,
        peer: usize,
        operation: &'static str,
        strict: bool,
    ) -> Result<(), CollectiveError> {
        if (found.token, found.step, found.kind) != (self.token, self.step, self.kind) {
            let (expected, found) = (self.place(), found.place());
            return Err(CollectiveError::OutOfStep { operation, peer, expected, found });
        }
        if strict && found.bytes != self.bytes {
            return Err(CollectiveError::Mismatch { operation, peer, expected: self.bytes, found: found.bytes });
        }
        Ok(())
    }

    fn place(self) -> String {
        format!("step {} kind {:x} of group {:08x}", self.step, self.kind, self.token >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_differences_are_named() {
        let header = Header { token: u64::MAX - 1, step: 3, kind: 5 << 8 | 2, bytes: 1 << 40 };
        assert_eq!(Header::decode(header.encode()), header);
        let longer = Header { bytes: 1, ..header };
        assert!(matches!(header.check(longer, 1, "send", true), Err(CollectiveError::Mismatch { found: 1, .. })));
        assert_eq!(header.check(longer, 1, "send", false), Ok(()));
        let later = Header { step: 4, ..header };
        assert!(matches!(header.check(later, 1, "send", false), Err(CollectiveError::OutOfStep { peer: 1, .. })));
        // The same operation of an earlier epoch, or of another group.
        let elsewhere = Header { token: header.token - 1, ..header };
        assert!(matches!(header.check(elsewhere, 1, "send", false), Err(CollectiveError::OutOfStep { peer: 1, .. })));
    }
}
