//! Values of a record: labels, groups, splits and what makes two texts the same.

use graftwork_shared::{data::Split, digest::Hasher};

use super::{Dedupe, ImportError, LabelKind, LabelOptions, SplitOptions};
use crate::{error::list_names, select::Draw};

/// A label as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LabelValue {
    Class(String),
    Number(f64),
}

/// Reads labels by the options.
pub(crate) struct Labeller<'a> {
    options: &'a LabelOptions,
}

/// A label that the options do not provide for, and what they do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadValue {
    value: String,
    allowed: String,
}

impl BadValue {
    pub(crate) fn at(self, file: &str, line: u64, column: &str) -> ImportError {
        let (file, column) = (file.to_owned(), column.to_owned());
        ImportError::Label { file, line, column, value: self.value, allowed: self.allowed }
    }
}

/// A split name that is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSplit(String);

impl BadSplit {
    pub(crate) fn at(self, file: &str, line: u64) -> ImportError {
        ImportError::Split { file: file.to_owned(), line, value: self.0 }
    }
}

impl<'a> Labeller<'a> {
    pub(crate) fn new(options: &'a LabelOptions) -> Self {
        Self { options }
    }

    /// The label, or `None` when its row is to be left out.
    pub(crate) fn read(&self, raw: &str) -> Result<Option<LabelValue>, BadValue> {
        let options = self.options;
        let value = until(raw, options.until.as_deref());
        if options.drop.iter().any(|dropped| dropped == value) {
            return Ok(None);
        }
        let bad = |allowed: String| BadValue { value: raw.to_owned(), allowed };
        if value.is_empty() {
            return Err(bad("an empty label is left out only when `label.drop` names the empty text".to_owned()));
        }
        if options.kind == LabelKind::Number {
            return number(value).map(|number| Some(LabelValue::Number(number))).ok_or_else(|| bad(NUMBER.to_owned()));
        }
        if !options.ranges.is_empty() {
            let number = number(value).ok_or_else(|| bad(NUMBER.to_owned()))?;
            let range = options.ranges.iter().find(|range| range.below.is_none_or(|below| number < below));
            let range = range.ok_or_else(|| bad("no range takes it; end with a range without `below`".to_owned()))?;
            return Ok(range.class.clone().map(LabelValue::Class));
        }
        let name = if options.names.is_empty() {
            value.to_owned()
        } else {
            let allowed = || format!("the dictionary has {}", list_names(options.names.keys().map(String::as_str)));
            options.names.get(value).cloned().ok_or_else(|| bad(allowed()))?
        };
        if !options.order.is_empty() && !options.order.contains(&name) {
            return Err(bad(format!("the classes are {}", list_names(options.order.iter().map(String::as_str)))));
        }
        Ok(Some(LabelValue::Class(name)))
    }
}

const NUMBER: &str = "a finite number is needed";

fn number(value: &str) -> Option<f64> {
    value.parse::<f64>().ok().filter(|number| number.is_finite())
}

pub(crate) fn until<'t>(text: &'t str, separator: Option<&str>) -> &'t str {
    let Some(separator) = separator.filter(|separator| !separator.is_empty()) else { return text };
    text.split_once(separator).map_or(text, |(front, _)| front.trim())
}

/// Gives each row its split.
pub(crate) struct Draws<'a> {
    options: &'a SplitOptions,
    draw: Draw,
}

impl<'a> Draws<'a> {
    pub(crate) fn new(options: &'a SplitOptions) -> Self {
        Self { options, draw: Draw::new(options.seed, options.validation, options.test) }
    }

    /// The split of a row: by its split field, its group, or its number among the rows kept.
    pub(crate) fn split(&self, number: u64, group: Option<&str>, column: Option<&str>) -> Result<Split, BadSplit> {
        if self.options.column.is_some() {
            let value = column.unwrap_or_default();
            return match value.to_lowercase().as_str() {
                "train" | "training" => Ok(Split::Train),
                "validation" | "valid" | "val" | "dev" => Ok(Split::Validation),
                "test" => Ok(Split::Test),
                _ => Err(BadSplit(value.to_owned())),
            };
        }
        Ok(group.map_or_else(|| self.draw.row(number), |group| self.draw.group(group)))
    }

    /// Which splits must have rows.
    pub(crate) fn wanted(&self) -> [(Split, bool); 3] {
        let by_share = self.options.column.is_none();
        [
            (Split::Train, true),
            (Split::Validation, by_share && self.options.validation > 0.0),
            (Split::Test, by_share && self.options.test > 0.0),
        ]
    }
}

/// 128 bits of SHA-256 of what makes a row's texts the same as another's.
pub(crate) fn text_key(dedupe: Dedupe, texts: &[&str]) -> [u8; 16] {
    let mut hasher = Hasher::new();
    for text in texts {
        let form = if dedupe == Dedupe::Words { words_of(text) } else { (*text).to_owned() };
        hasher.update(form.as_bytes());
        hasher.update(&[0]);
    }
    let digest = hasher.finish();
    *digest.bytes().first_chunk::<16>().expect("a digest has 32 bytes")
}

/// Lower-case letters word by word, without links, mentions and the retweet mark.
fn words_of(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut words = Vec::new();
    for token in lower.split_whitespace() {
        if token.starts_with("http") || token.starts_with('@') || token == "rt" {
            continue;
        }
        words.extend(token.split(|letter: char| !letter.is_alphabetic()).filter(|word| !word.is_empty()));
    }
    if words.is_empty() { text.to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::LabelRange;

    #[test]
    fn labels_are_cut_looked_up_and_dropped() {
        let options = LabelOptions {
            until: Some(":".to_owned()),
            drop: vec!["x".to_owned()],
            names: [("DESC".to_owned(), "description".to_owned())].into(),
            ..LabelOptions::default()
        };
        let labeller = Labeller::new(&options);
        assert_eq!(labeller.read("DESC:manner"), Ok(Some(LabelValue::Class("description".to_owned()))));
        assert_eq!(labeller.read("x:y"), Ok(None));
        assert!(labeller.read("LOC:city").unwrap_err().allowed.contains("\"DESC\""));
        assert!(labeller.read("").is_err());
    }

    #[test]
    fn numbers_become_classes_by_range() {
        let range = |below, class: Option<&str>| LabelRange { below, class: class.map(str::to_owned) };
        let ranges = vec![range(Some(-0.5), Some("bad")), range(Some(0.5), None), range(None, Some("good"))];
        let options = LabelOptions { ranges, ..LabelOptions::default() };
        let labeller = Labeller::new(&options);
        assert_eq!(labeller.read("-1"), Ok(Some(LabelValue::Class("bad".to_owned()))));
        assert_eq!(labeller.read("0.1"), Ok(None));
        assert_eq!(labeller.read("7"), Ok(Some(LabelValue::Class("good".to_owned()))));
        assert!(labeller.read("nan").is_err());
    }

    #[test]
    fn a_retweet_has_the_words_of_the_tweet() {
        let key = |text| text_key(Dedupe::Words, &[text]);
        assert_eq!(key("Great phone! http://t.co/abc"), key("RT @me: great PHONE http://t.co/xyz"));
        assert_ne!(key("great phone"), key("great phones"));
        assert_ne!(key("12"), key("13"), "texts without words are compared as they are");
        assert_ne!(text_key(Dedupe::Exact, &["a", "b"]), text_key(Dedupe::Exact, &["ab", ""]));
    }
}
