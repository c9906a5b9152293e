//! A table's own keys over the keys that it inherits.

use crate::job::tree::{Table, Value};

/// A task's or fusion's table over the same table of `[defaults]`.
#[derive(Clone, Copy, Default)]
pub(super) struct Layers<'t> {
    /// The table itself.
    pub(super) own: Option<&'t Table>,
    /// What it inherits from.
    pub(super) inherited: Option<&'t Table>,
}

impl<'t> Layers<'t> {
    /// The value of a key, the table's own first.
    pub(super) fn get(&self, key: &str) -> Option<&'t Value> {
        let own = self.own.and_then(|table| table.get(key));
        own.or_else(|| self.inherited.and_then(|table| table.get(key))).map(|item| &item.value)
    }

    /// Puts the value of a key into its place, unless it is missing or was refused.
    pub(super) fn take<T>(&self, key: &str, read: impl Fn(&Value) -> Option<T>, target: &mut T) {
        if let Some(value) = self.get(key).and_then(read) {
            *target = value;
        }
    }

    /// The one of two keys that exclude each other which counts: an own one before an inherited one.
    pub(super) fn one_of(&self, first: &'static str, second: &'static str) -> Option<(&'static str, &'t Value)> {
        let in_table = |table: &'t Table| {
            let name = [first, second].into_iter().find(|name| table.has(name))?;
            table.get(name).map(|item| (name, &item.value))
        };
        self.own.and_then(in_table).or_else(|| self.inherited.and_then(in_table))
    }

    /// Whether the key was written, here or in the defaults.
    pub(super) fn has(&self, key: &str) -> bool {
        self.own.is_some_and(|table| table.has(key)) || self.inherited.is_some_and(|table| table.has(key))
    }

    /// Whether the key was written here, with an allowed value.
    pub(super) fn own(&self, key: &str) -> Option<&'t Value> {
        self.own?.get(key).map(|item| &item.value)
    }

    /// Whether one of these keys was refused, so that what follows from it is not known.
    pub(super) fn unsure(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| matches!(self.get(key), Some(Value::Refused)))
    }
}
