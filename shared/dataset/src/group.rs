//! Digests of the rows of each row group: the recorded data digest, and the proof that later epochs saw the same rows.
//!
//! A group's digest is the sum, modulo 2^256, of the digests of its rows, so the order in which rows come does not
//! matter. What a value holds depends on the rows handed out so far and on nothing else (invariant 5).

use std::fmt::Write as _;

use graftwork_shared::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::DataError;

/// Digests of the rows of each row group: taken in the first epoch, checked in later ones; part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDigests {
    /// Of the first whole epoch, `[file][row group]`.
    recorded: Option<Vec<Vec<GroupSum>>>,
    /// Of the epoch under way.
    current: Vec<Vec<GroupSum>>,
    /// Rows of the epoch under way.
    consumed: u64,
}

/// Sum of row digests as four little-endian words, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct GroupSum {
    rows: u64,
    sum: [u64; 4],
}

impl GroupSum {
    fn add(&mut self, row: &Digest) {
        let mut carry = false;
        for (word, bytes) in self.sum.iter_mut().zip(row.bytes().chunks_exact(8)) {
            let addend = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            (*word, carry) = word.carrying_add(addend, carry);
        }
        self.rows += 1;
    }
}

impl GroupDigests {
    /// SHA-256 over the sums of all row groups, of the first whole epoch, or of the rows so far before there is one.
    pub fn digest(&self) -> Digest {
        Digest::of_value("graftwork rows", self.recorded.as_ref().unwrap_or(&self.current))
    }

    /// Whether every row of an epoch was seen.
    pub fn is_complete(&self) -> bool {
        self.recorded.is_some()
    }

    /// Readies the digests for an epoch that goes on at a cursor.
    pub(crate) fn resume(&mut self, cursor: u64, groups: &[usize]) -> Result<(), DataError> {
        if cursor == 0 {
            self.current = groups.iter().map(|count| vec![GroupSum::default(); *count]).collect();
            self.consumed = 0;
        }
        let fits = |sums: &Vec<Vec<GroupSum>>| sums.iter().map(Vec::len).eq(groups.iter().copied());
        let fits = fits(&self.current) && self.recorded.as_ref().is_none_or(fits);
        if self.consumed != cursor || !fits {
            return Err(DataError::GroupsDoNotFit { cursor, consumed: self.consumed });
        }
        Ok(())
    }

    /// Counts a row. Returns false when its group is complete and differs from the first epoch's.
    pub(crate) fn add(&mut self, file: usize, group: usize, row: &Digest) -> bool {
        let sum = &mut self.current[file][group];
        sum.add(row);
        self.consumed += 1;
        let first = self.recorded.as_ref().map(|recorded| recorded[file][group]);
        first.is_none_or(|first| sum.rows < first.rows || *sum == first)
    }

    /// Takes the epoch's digests for good when they are the first whole ones.
    pub(crate) fn finish(&mut self) {
        if self.recorded.is_none() {
            self.recorded = Some(self.current.clone());
        }
    }

    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }
}

/// Written as `ROWS:HEX`: a data set has thousands of groups, and each checkpoint holds them all.
impl Serialize for GroupSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::default() {
            return serializer.serialize_str("");
        }
        let mut text = format!("{}:", self.rows);
        for word in self.sum {
            write!(text, "{word:016x}").expect("a string takes any text");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for GroupSum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parse = || -> Option<Self> {
            let (rows, words) = text.split_once(':')?;
            let legal = words.len() == 64 && words.bytes().all(|byte| byte.is_ascii_hexdigit());
            let mut sum = [0; 4];
            for (index, word) in sum.iter_mut().enumerate() {
                *word = u64::from_str_radix(words.get(index * 16..index * 16 + 16)?, 16).ok()?;
            }
            legal.then_some(Self { rows: rows.parse().ok()?, sum })
        };
        parse().ok_or_else(|| D::Error::custom(format!("{text:?} is no row-group digest of the form ROWS:HEX")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest_of(rows: &[u64]) -> Digest {
        let mut groups = GroupDigests::default();
        groups.resume(0, &[1]).unwrap();
        for row in rows {
            groups.add(0, 0, &Digest::of(&row.to_le_bytes()));
        }
        groups.finish();
        groups.digest()
    }

    proptest! {
        #[test]
        fn the_order_of_rows_does_not_matter(mut rows in proptest::collection::vec(any::<u64>(), 1..50)) {
            let straight = digest_of(&rows);
            rows.reverse();
            prop_assert_eq!(straight, digest_of(&rows));
            rows[0] = rows[0].wrapping_add(1);
            prop_assert_ne!(straight, digest_of(&rows));
        }
    }

    #[test]
    fn digests_survive_a_checkpoint() {
        let mut groups = GroupDigests::default();
        groups.resume(0, &[2, 1]).unwrap();
        groups.add(0, 1, &Digest::of(b"a"));
        let text = serde_json::to_string(&groups).unwrap();
        let mut back: GroupDigests = serde_json::from_str(&text).unwrap();
        assert_eq!(back, groups);
        assert!(back.resume(1, &[2, 1]).is_ok());
        assert!(matches!(back.resume(2, &[2, 1]), Err(DataError::GroupsDoNotFit { cursor: 2, consumed: 1 })));
        assert!(serde_json::from_str::<GroupDigests>(&text.replace("1:", "1;")).is_err());
    }

    #[test]
    fn a_later_epoch_with_another_row_is_noticed_when_its_group_is_complete() {
        let mut groups = GroupDigests::default();
        groups.resume(0, &[1]).unwrap();
        assert!(groups.add(0, 0, &Digest::of(b"a")) && groups.add(0, 0, &Digest::of(b"b")));
        groups.finish();
        groups.resume(0, &[1]).unwrap();
        assert!(groups.add(0, 0, &Digest::of(b"b")) && groups.add(0, 0, &Digest::of(b"a")));
        groups.resume(0, &[1]).unwrap();
        assert!(groups.add(0, 0, &Digest::of(b"a")) && !groups.add(0, 0, &Digest::of(b"c")));
    }
}
