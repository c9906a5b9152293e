//! Texts to token ids, exactly as Hugging Face's fast tokenizers make them: the same library reads the same
//! `tokenizer.json`, special tokens are added, pairs are joined, and what is too long is cut longest first.
//!
//! Padding is off whatever the file says: rows are packed.

use std::path::Path;

use graftwork_dataset::{Label, Row};
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::{InputError, pack::Example};

/// A tokenizer with a length limit.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
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
        let truncation = TruncationParams {
            max_length: max_length as usize,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| wrong(error.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, segments: type_vocab_size > 1 })
    }

    /// The tokens of one text or a pair of texts. `row` stands in the message of an error.
    pub fn encode(&self, row: u64, texts: &[String]) -> Result<Encoded, InputError> {
        let wrong = |what: String| InputError::Row { row, what };
        let encoding = match texts {
            [text] => self.tokenizer.encode_fast(text.as_str(), true),
            [first, second] => self.tokenizer.encode_fast((first.as_str(), second.as_str()), true),
            _ => return Err(wrong(format!("{} texts, a row has one or two", texts.len()))),
        };
        let encoding = encoding.map_err(|error| wrong(format!("cannot be tokenised: {error}")))?;
        if encoding.get_ids().is_empty() {
            return Err(wrong("has no tokens; give it a text".to_owned()));
        }
        let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect();
        let type_ids = if self.segments { wide(encoding.get_type_ids()) } else { vec![0; encoding.get_ids().len()] };
        Ok(Encoded { ids: wide(encoding.get_ids()), type_ids })
    }

    pub(super) fn example(&self, row: &Row) -> Result<Example, InputError> {
        let label: Label = row.label;
        Ok(Example { number: row.number, tokens: self.encode(row.number, &row.texts)?, label })
    }
}
