//! Texts to token ids, exactly as Hugging Face's fast tokenizers make them: the same library reads the same
//! `tokenizer.json`, special tokens are added, pairs are joined, and what is too long is cut longest first.
//!
//! Pairs are cut here and not by the library, whose newer versions stop reading a text at the limit and so no longer know
//! which text of a pair was the longer one.
//!
//! Padding is off whatever the file says: rows are packed.
//!
//! What was tokenised once may be kept on a shelf, where later epochs, other stages and later runs find it by the texts
//! themselves: whatever happens to the files, other texts are never given another one's ids.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use graftwork_dataset::{Label, Row};
use graftwork_shared::{
    NUMERICS_VERSION,
    digest::{Digest, Hasher},
};
use tokenizers::{Encoding, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::{InputError, pack::Example};
use crate::shelf::{Shelves, Visit};

/// A tokenizer with a length limit.
#[derive(Debug)]
pub struct TextEncoder {
    rules: Arc<Rules>,
    kept: Option<Visit>,
    tokenised: AtomicU64,
}

/// How texts become ids. As large as the vocabulary a few times, so stages of one base model and limit share it.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Cuts a single text at the limit.
    tokenizer: Tokenizer,
    /// Cuts nothing; made when the first pair is tokenised.
    whole: OnceLock<Tokenizer>,
    max_length: usize,
    segments: bool,
    /// Digest of `tokenizer.json`.
    digest: Digest,
}

/// The tokens of one row, special tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<i64>,
    /// Segment ids: 1 for the second text of a pair where the model knows segments, 0 otherwise.
    pub type_ids: Vec<i64>,
}

impl Rules {
    /// As [`TextEncoder::open`].
    pub(crate) fn open(path: &Path, max_length: u32, type_vocab_size: u32) -> Result<Self, InputError> {
        let wrong = |what: String| InputError::Tokenizer { path: path.display().to_string(), what };
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let mut tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|error| wrong(format!("not a tokenizer: {error}")))?;
        let added =
            tokenizer.get_post_processor().map_or(0, |post| tokenizers::PostProcessor::added_tokens(post, true));
        // The library subtracts without a check when the limit is below the special tokens.
        if (max_length as usize) <= added {
            return Err(InputError::Length { given: max_length, added });
        }
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            max_length: max_length as usize,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        for truncation in [None, Some(truncation)] {
            tokenizer.with_truncation(truncation).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(Self {
            tokenizer,
            whole: OnceLock::new(),
            max_length: max_length as usize,
            segments: type_vocab_size > 1,
            digest: Digest::of(&bytes),
        })
    }

    fn whole(&self) -> &Tokenizer {
        self.whole.get_or_init(|| {
            let mut whole = self.tokenizer.clone();
            whole.with_truncation(None).expect("it had none before it had one");
            whole
        })
    }
}

impl TextEncoder {
    /// Opens `tokenizer.json`. Rows get at most `max_length` tokens, special tokens included; `type_vocab_size` is the
    /// trunk's number of segment types.
    pub fn open(path: &Path, max_length: u32, type_vocab_size: u32) -> Result<Self, InputError> {
        Ok(Self::with(Arc::new(Rules::open(path, max_length, type_vocab_size)?)))
    }

    pub(crate) fn with(rules: Arc<Rules>) -> Self {
        Self { rules, kept: None, tokenised: AtomicU64::new(0) }
    }

    /// Keeps token ids on a shelf of their own for the rows of `data`, a digest of the files that they come from.
    pub fn keeping(mut self, shelves: &Arc<Shelves>, data: &Digest) -> Self {
        let Rules { max_length, segments, digest, .. } = &*self.rules;
        let of = (NUMERICS_VERSION, digest, max_length, segments, data);
        self.kept = Some(shelves.visit("tokens", &Digest::of_value("graftwork token ids", &of)));
        self
    }

    /// How many rows were tokenised: all that were asked for and not found on a shelf.
    pub fn tokenised(&self) -> u64 {
        self.tokenised.load(Ordering::Relaxed)
    }

    /// The tokens of one text or a pair of texts, tokenised or found. `row` stands in the message of an error.
    fn encode_once(&self, row: u64, texts: &[String]) -> Result<Encoded, InputError> {
        let Some(kept) = &self.kept else { return self.encode(row, texts) };
        let key = key(texts);
        if let Some(encoded) = kept.get(&key).and_then(|bytes| Encoded::read(&bytes, self.rules.max_length)) {
            return Ok(encoded);
        }
        let encoded = self.encode(row, texts)?;
        if let Some(bytes) = encoded.bytes() {
            kept.put(&key, &bytes);
        }
        Ok(encoded)
    }

    /// The tokens of one text or a pair of texts. `row` stands in the message of an error.
    pub fn encode(&self, row: u64, texts: &[String]) -> Result<Encoded, InputError> {
        let wrong = |what: String| InputError::Row { row, what };
        self.tokenised.fetch_add(1, Ordering::Relaxed);
        let encoding = match texts {
            [text] => self.rules.tokenizer.encode_fast(text.as_str(), true),
            [first, second] => self.rules.whole().encode_fast((first.as_str(), second.as_str()), true),
            _ => return Err(wrong(format!("{} texts, a row has one or two", texts.len()))),
        };
        let encoding = encoding.map_err(|error| wrong(format!("cannot be tokenised: {error}")))?;
        if encoding.get_ids().is_empty() {
            return Err(wrong("has no tokens; give it a text".to_owned()));
        }
        let kept = self.kept(&encoding);
        let of = |values: &[u32]| kept.iter().map(|&token| i64::from(values[token])).collect();
        let type_ids = if self.rules.segments { of(encoding.get_type_ids()) } else { vec![0; kept.len()] };
        Ok(Encoded { ids: of(encoding.get_ids()), type_ids })
    }

    /// Positions of the tokens within the limit: all special ones, and the first ones of each text.
    fn kept(&self, encoding: &Encoding) -> Vec<usize> {
        let count = encoding.get_ids().len();
        if count <= self.rules.max_length {
            return (0..count).collect();
        }
        let mut lengths = [0; 2];
        let texts: Vec<Option<usize>> = (0..count).map(|token| encoding.token_to_sequence(token)).collect();
        texts.iter().flatten().for_each(|&text| lengths[text] += 1);
        let special = count - lengths[0] - lengths[1];
        let mut left = longest_first(lengths, self.rules.max_length - special);
        let keeps = |text: &Option<usize>| {
            let Some(text) = text else { return true };
            let keeps = left[*text] > 0;
            left[*text] -= usize::from(keeps);
            keeps
        };
        let kept: Vec<bool> = texts.iter().map(keeps).collect();
        (0..count).filter(|&token| kept[token]).collect()
    }

    pub(super) fn example(&self, row: &Row) -> Result<Example, InputError> {
        let label: Label = row.label;
        Ok(Example { number: row.number, tokens: self.encode_once(row.number, &row.texts)?, label })
    }
}

impl Encoded {
    /// Ids of four bytes each, then segments of one; `None` where they are no such numbers.
    fn bytes(&self) -> Option<Vec<u8>> {
        let ids: Vec<u32> = self.ids.iter().map(|&id| id.try_into().ok()).collect::<Option<_>>()?;
        let segments: Vec<u8> = self.type_ids.iter().map(|&segment| segment.try_into().ok()).collect::<Option<_>>()?;
        Some(ids.into_iter().flat_map(u32::to_le_bytes).chain(segments).collect())
    }

    /// The reverse of [`Self::bytes`].
    fn read(bytes: &[u8], most: usize) -> Option<Self> {
        let count = bytes.len() / 5;
        if count == 0 || count > most || bytes.len() != 5 * count {
            return None;
        }
        let (ids, segments) = bytes.split_at(4 * count);
        let ids = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id).into()).collect();
        Some(Self { ids, type_ids: segments.iter().map(|&segment| segment.into()).collect() })
    }
}

/// What a row's tokens are found by.
fn key(texts: &[String]) -> Digest {
    let mut hasher = Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finish()
}

/// How many tokens of each text of a pair stay: the longer text gives way first; where both are too long they share the
/// room, and the longer one (the second, when they are equal) gets the odd token.
fn longest_first([first, second]: [usize; 2], room: usize) -> [usize; 2] {
    if first + second <= room {
        return [first, second];
    }
    let short = first.min(second).min(room / 2);
    if first > second { [room - short, short] } else { [short, room - short] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_cut_as_the_peers_tokenizer_cuts_them() {
        // Lengths of the texts, and what Hugging Face's tokenizers 0.22.2 leaves of them in a room of 29.
        for (lengths, kept) in [
            ([30, 20], [15, 14]),
            ([20, 30], [14, 15]),
            ([25, 26], [14, 15]),
            ([26, 25], [15, 14]),
            ([40, 40], [14, 15]),
            ([41, 40], [15, 14]),
            ([40, 10], [19, 10]),
            ([10, 40], [10, 19]),
            ([10, 19], [10, 19]),
        ] {
            assert_eq!(longest_first(lengths, 29), kept, "{lengths:?}");
        }
    }
}
