//! The one table of keys that a job file may hold.
//!
//! It drives the checks of [`super::check`], the JSON schema and the reference in Markdown, so that none of them can
//! say something else than the others. What a default is worth is decided by the `Default` of the resolved types;
//! a test keeps the defaults written here equal to them.

mod adapter;
mod fusion;
mod nightly;
mod sweep;
mod task;
mod top;
mod training;

pub(crate) use adapter::{ADAPTER, BOTTLENECK, LORA};
pub(crate) use top::TOP;

use super::duration;
use crate::schedule;

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// `true` or `false`.
    Flag,
    /// A whole number between two bounds, both allowed.
    Whole(i64, i64),
    /// A number within bounds.
    Number(Bounds),
    /// A text for people or a column, not empty.
    Text,
    /// A [`crate::id::Name`].
    Name,
    /// The name of an environment variable; the value is never shown, in case it is the secret itself.
    Variable,
    /// A local path, or an address of one of these schemes.
    Place(&'static [&'static str]),
    /// What a fusion reads: a task's name, a path or address with a `/`.
    Adapter,
    /// A duration such as `2h`; checked, it is a whole number of seconds.
    Duration,
    /// When something is due: a cron line.
    Cron,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of a least and a most number of elements.
    List(&'static Shape, usize, usize),
    /// The first of these whose TOML type is that of the value.
    Either(&'static [Shape]),
    /// A table from layer numbers, or `default`, to values.
    ByLayer(&'static Shape),
    /// A table with its own keys.
    Table(&'static Section),
    /// Tables by name.
    Named(&'static Section),
}

/// Bounds of a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The least.
    pub(crate) least: f64,
    /// The greatest.
    pub(crate) most: f64,
    /// The least itself is allowed.
    pub(crate) with_least: bool,
    /// The greatest itself is allowed.
    pub(crate) with_most: bool,
}

impl Bounds {
    /// Both bounds are allowed.
    pub(crate) const fn closed(least: f64, most: f64) -> Self {
        Self { least, most, with_least: true, with_most: true }
    }

    /// The least is not allowed, the greatest is.
    pub(crate) const fn above(least: f64, most: f64) -> Self {
        Self { with_least: false, ..Self::closed(least, most) }
    }

    /// The least is allowed, the greatest is not.
    pub(crate) const fn below(least: f64, most: f64) -> Self {
        Self { with_most: false, ..Self::closed(least, most) }
    }

    /// Whether a number lies within.
    pub(crate) fn hold(&self, number: f64) -> bool {
        let low = if self.with_least { number >= self.least } else { number > self.least };
        let high = if self.with_most { number <= self.most } else { number < self.most };
        low && high
    }
}

/// What a missing key means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Missing {
    /// It must be there.
    Required,
    /// As if this TOML value stood there.
    Value(&'static str),
    /// As these words say.
    Means(&'static str),
    /// What the adapter method's preset says.
    Preset,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Its name.
    pub(crate) name: &'static str,
    /// What its value must look like.
    pub(crate) shape: Shape,
    /// What its absence means.
    pub(crate) missing: Missing,
    /// A TOML value that is allowed and differs from what a missing key means.
    pub(crate) example: &'static str,
    /// Meaning and consequence, with the unit.
    pub(crate) about: &'static str,
    /// Whether [`super::Job::digest`] depends on it.
    pub(crate) digested: bool,
}

impl Key {
    /// A key that enters the job's digest.
    pub(crate) const fn new(
        name: &'static str,
        shape: Shape,
        missing: Missing,
        example: &'static str,
        about: &'static str,
    ) -> Self {
        Self { name, shape, missing, example, about, digested: true }
    }

    /// A table that may be left out.
    pub(crate) const fn table(name: &'static str, section: &'static Section, about: &'static str) -> Self {
        Self::new(name, Shape::Table(section), Missing::Means("every key at its default"), "{}", about)
    }

    /// The key does not enter the job's digest.
    pub(crate) const fn undigested(self) -> Self {
        Self { digested: false, ..self }
    }
}

/// A table of the job file.
#[derive(Debug)]
pub(crate) struct Section {
    /// A short name, unique among sections: the name of its definition in the JSON schema.
    pub(crate) name: &'static str,
    /// Where it stands, in dotted paths; `NAME` is a name that the user chooses.
    pub(crate) places: &'static [&'static str],
    /// What it is for.
    pub(crate) about: &'static str,
    /// Its keys.
    pub(crate) keys: &'static [Key],
    /// Pairs of keys that exclude each other.
    pub(crate) exclusive: &'static [(&'static str, &'static str)],
}

impl Section {
    /// The key of this name.
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// This section and every one below it, parents first, each once.
    pub(crate) fn all(&'static self) -> Vec<&'static Section> {
        let mut found: Vec<&'static Section> = vec![self];
        let mut next = 0;
        while let Some(section) = found.get(next).copied() {
            for below in section.keys.iter().flat_map(|key| key.shape.sections()) {
                if !found.iter().any(|known| std::ptr::eq(*known, below)) {
                    found.push(below);
                }
            }
            next += 1;
        }
        found
    }
}

impl Shape {
    /// The sections that a value of this shape may be.
    pub(crate) fn sections(&self) -> Vec<&'static Section> {
        match self {
            Self::Table(section) | Self::Named(section) => vec![section],
            Self::Either(shapes) => shapes.iter().flat_map(Shape::sections).collect(),
            _ => Vec::new(),
        }
    }

    /// What is allowed, in words that follow "must be".
    pub(crate) fn allowed(&self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Whole(least, i64::MAX) => format!("a whole number of at least {least}"),
            Self::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Self::Number(bounds) => format!("a number {bounds}"),
            Self::Text => "a text".to_owned(),
            Self::Name => "a name (letters, digits, `_` and `-`)".to_owned(),
            Self::Variable => "the name of an environment variable".to_owned(),
            Self::Place([]) => "a path".to_owned(),
            Self::Place(schemes) => format!("a path or an address ({}://)", schemes.join("://, ")),
            Self::Adapter => "a task's name, a path with a `/`, or hf://ORGANISATION/NAME@REVISION".to_owned(),
            Self::Duration => duration::ALLOWED.to_owned(),
            Self::Cron => schedule::ALLOWED.to_owned(),
            Self::Choice([word]) => format!("{word:?}"),
            Self::Choice(words) => format!("one of {}", quoted(words)),
            Self::List(element, 0, usize::MAX) => format!("a list, each {}", element.allowed()),
            Self::List(element, least, most) => {
                format!("a list of {}, each {}", count(*least, *most), element.allowed())
            }
            Self::Either([one, Self::List(_, least, most)]) => {
                format!("{}, or a list of {} of them", one.allowed(), count(*least, *most))
            }
            Self::Either(shapes) => shapes.iter().map(Shape::allowed).collect::<Vec<_>>().join(", or "),
            Self::ByLayer(value) => format!("a table from layer numbers or `default` to {}", value.allowed()),
            Self::Table(section) if section.keys.len() <= 4 => {
                let names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
                format!("a table {{ {} }}", names.join(", "))
            }
            Self::Table(_) => "a table".to_owned(),
            Self::Named(_) => "a table of tables by name".to_owned(),
        }
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.with_least, self.with_most) {
            (true, true) => write!(f, "from {} to {}", self.least, self.most),
            (false, true) => write!(f, "above {} and at most {}", self.least, self.most),
            (true, false) => write!(f, "of at least {} and below {}", self.least, self.most),
            (false, false) => write!(f, "above {} and below {}", self.least, self.most),
        }
    }
}

/// Words in quotes, separated by commas.
pub(crate) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

fn count(least: usize, most: usize) -> String {
    match (least, most) {
        (least, usize::MAX) => format!("at least {least}"),
        (least, most) if least == most => least.to_string(),
        (least, most) if most - least == 1 => format!("{least} or {most}"),
        (least, most) => format!("{least} to {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_stands_twice_in_a_section_and_no_two_sections_share_a_name() {
        let sections = TOP.all();
        for (index, section) in sections.iter().enumerate() {
            assert!(sections[..index].iter().all(|other| other.name != section.name), "{}", section.name);
            for (index, key) in section.keys.iter().enumerate() {
                assert!(section.keys[..index].iter().all(|other| other.name != key.name), "{}", key.name);
                assert!(key.about.len() > 10 && key.about.ends_with('.'), "{}: {}", section.name, key.name);
            }
            for (first, second) in section.exclusive {
                assert!(section.key(first).is_some() && section.key(second).is_some(), "{first} {second}");
            }
        }
        assert!(sections.len() >= 13, "{}", sections.len());
    }
}
