//! Texts to token ids, exactly as Hugging Face's fast tokenizers make them: the same library reads the same
//! `tokenizer.json`, special tokens are added, pairs are joined, and what is too long is cut longest first.
//!
//! Pairs are cut here and not by the library, whose newer versions stop reading a text at the limit and so no longer know
//! which text of a pair was the longer one.
//!
//! Padding is off whatever the file says: rows are packed.

use std::path::Path;

use graftwork_dataset::{Label, Row};
use tokenizers::{Encoding, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::{InputError, pack::Example};

/// A tokenizer with a length limit.
#[derive(Debug)]
pub struct TextEncoder {
    /// Cuts a single text at the limit.
    tokenizer: Tokenizer,
    /// Cuts nothing.
    whole: Tokenizer,
    max_length: usize,
    segments: bool,
}

/// The tokens of one row, special tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<i64>,
    /// Segment ids: 1 for the second text of a pair where the model knows segments, 0 otherwise.
    pub type_ids: Vec<i64>,
}

impl TextEncoder {
    /// Opens `tokenizer.json`. Rows get at most `max_length` tokens, special tokens included; `type_vocab_size` is the
    /// trunk's number of segment types.
    pub fn open(path: &Path, max_length: u32, type_vocab_size: u32) -> Result<Self, InputError> {
        let wrong = |what: String| InputError::Tokenizer { path: path.display().to_string(), what };
        let mut tokenizer = Tokenizer::from_file(path).map_err(|error| wrong(format!("not a tokenizer: {error}")))?;
        let added =
            tokenizer.get_post_processor().map_or(0, |post| tokenizers::PostProcessor::added_tokens(post, true));
        // The library subtracts without a check when the limit is below the special tokens.
        if (max_length as usize) <= added {
            return Err(InputError::Length { given: max_length, added });
        }
        tokenizer.with_padding(None);
        let mut whole = tokenizer.clone();
        whole.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        let truncation = TruncationParams {
            max_length: max_length as usize,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { tokenizer, whole, max_length: max_length as usize, segments: type_vocab_size > 1 })
    }

    /// The tokens of one text or a pair of texts. `row` stands in the message of an error.
    pub fn encode(&self, row: u64, texts: &[String]) -> Result<Encoded, InputError> {
        let wrong = |what: String| InputError::Row { row, what };
        let encoding = match texts {
            [text] => self.tokenizer.encode_fast(text.as_str(), true),
            [first, second] => self.whole.encode_fast((first.as_str(), second.as_str()), true),
            _ => return Err(wrong(format!("{} texts, a row has one or two", texts.len()))),
        };
        let encoding = encoding.map_err(|error| wrong(format!("cannot be tokenised: {error}")))?;
        if encoding.get_ids().is_empty() {
            return Err(wrong("has no tokens; give it a text".to_owned()));
        }
        let kept = self.kept(&encoding);
        let of = |values: &[u32]| kept.iter().map(|&token| i64::from(values[token])).collect();
        let type_ids = if self.segments { of(encoding.get_type_ids()) } else { vec![0; kept.len()] };
        Ok(Encoded { ids: of(encoding.get_ids()), type_ids })
    }

    /// Positions of the tokens within the limit: all special ones, and the first ones of each text.
    fn kept(&self, encoding: &Encoding) -> Vec<usize> {
        let count = encoding.get_ids().len();
        if count <= self.max_length {
            return (0..count).collect();
        }
        let mut lengths = [0; 2];
        let texts: Vec<Option<usize>> = (0..count).map(|token| encoding.token_to_sequence(token)).collect();
        texts.iter().flatten().for_each(|&text| lengths[text] += 1);
        let special = count - lengths[0] - lengths[1];
        let mut left = longest_first(lengths, self.max_length - special);
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
        Ok(Example { number: row.number, tokens: self.encode(row.number, &row.texts)?, label })
    }
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
