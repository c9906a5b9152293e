//! One example as the trainer sees it.

use graftwork_shared::digest::{Digest, Hasher};

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Number of the row through all files of the manifest, from 0.
    pub number: u64,
    /// Its text, or its pair of texts.
    pub texts: Vec<String>,
    /// Its label.
    pub label: Label,
}

/// The label of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// Class id: position in the head's label set.
    Class(u32),
    /// Target of a regression, finite.
    Value(f32),
}

impl Row {
    /// SHA-256 over number, texts and label, each with its length or kind in front, little-endian.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(&self.number.to_le_bytes());
        for text in &self.texts {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        match self.label {
            Label::Class(class) => {
                hasher.update(b"c");
                hasher.update(&class.to_le_bytes());
            }
            Label::Value(value) => {
                hasher.update(b"v");
                hasher.update(&value.to_bits().to_le_bytes());
            }
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_row_enters_its_digest() {
        let row = Row { number: 1, texts: vec!["ab".into(), "c".into()], label: Label::Class(0) };
        let moved = Row { texts: vec!["a".into(), "bc".into()], ..row.clone() };
        let others = [
            Row { number: 2, ..row.clone() },
            moved,
            Row { label: Label::Class(1), ..row.clone() },
            Row { label: Label::Value(0.0), ..row.clone() },
        ];
        for other in others {
            assert_ne!(row.digest(), other.digest(), "{other:?}");
        }
        assert_eq!(row.digest(), row.clone().digest());
    }
}
