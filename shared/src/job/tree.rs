//! The job file as checked values with their places: what [`super::check`] hands to [`super::resolve`].
//!
//! A value that was refused stays as [`Value::Refused`], so that later checks know that the key was written and do
//! not complain a second time.

use std::{cell::Cell, ops::Range};

/// A table, its entries in the file's order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Where its name stands.
    pub(crate) key: Range<usize>,
    /// Its entries.
    pub(crate) entries: Vec<(String, Item)>,
}

/// One entry.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Where its key stands.
    pub(crate) key: Range<usize>,
    /// Where its value stands; for a table, where its name stands.
    pub(crate) span: Range<usize>,
    /// Its value.
    pub(crate) value: Value,
    /// Whether something was decided by it: a default that nothing reads is without effect.
    pub(crate) used: Cell<bool>,
}

/// A value of an allowed shape.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// A number that was written with a point or an exponent.
    Number(f64),
    /// A text.
    Text(String),
    /// A list: its elements and where they stand.
    List(Vec<(Value, Range<usize>)>),
    /// A table.
    Table(Table),
    /// Not allowed; the reason is among the diagnostics.
    Refused,
}

impl Table {
    /// The entry of this name, marked as used.
    pub(crate) fn get(&self, name: &str) -> Option<&Item> {
        let item = &self.entries.iter().find(|(key, _)| key == name)?.1;
        item.used.set(true);
        Some(item)
    }

    /// Whether the key was written, with whatever value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, _)| key == name)
    }

    /// The table of this name.
    pub(crate) fn table(&self, name: &str) -> Option<&Table> {
        self.get(name)?.value.table()
    }

    /// The text of this name.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.get(name)?.value.text().map(str::to_owned)
    }
}

impl Value {
    /// A table.
    pub(crate) fn table(&self) -> Option<&Table> {
        if let Self::Table(table) = self { Some(table) } else { None }
    }

    /// A text.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self) -> Option<bool> {
        if let Self::Flag(flag) = self { Some(*flag) } else { None }
    }

    /// A whole number that fits the wanted type; bounds in the table of keys see to it that it does.
    pub(crate) fn whole<T: TryFrom<i64>>(&self) -> Option<T> {
        if let Self::Whole(number) = self { T::try_from(*number).ok() } else { None }
    }

    /// A number, written with or without a point.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Whole(number) => Some(*number as f64),
            _ => None,
        }
    }

    /// A word of an enum whose serde names are the allowed words.
    pub(crate) fn word<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_value(serde_json::Value::String(self.text()?.to_owned())).ok()
    }

    /// A list of values that one function reads; a single value is a list of one.
    pub(crate) fn each<'v, T>(&'v self, read: impl Fn(&'v Value) -> Option<T>) -> Option<Vec<T>> {
        match self {
            Self::Refused => None,
            Self::List(elements) => elements.iter().map(|(value, _)| read(value)).collect(),
            single => read(single).map(|value| vec![value]),
        }
    }

    /// The elements of a list with their places.
    pub(crate) fn elements(&self) -> &[(Value, Range<usize>)] {
        if let Self::List(elements) = self { elements } else { &[] }
    }
}
