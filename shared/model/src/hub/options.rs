//! Typed access to a JSON object of options, with errors that name the file, the key, the value and what is allowed.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ModelError;

/// A JSON object inside a file.
pub(crate) struct Options<'a> {
    pub(crate) map: &'a Map<String, Value>,
    pub(crate) file: &'a str,
}

impl<'a> Options<'a> {
    /// The object that a JSON file is.
    pub(crate) fn of(value: &'a Value, file: &'a str) -> Result<Self, ModelError> {
        let Value::Object(map) = value else {
            let (key, found, allowed) =
                ("(whole file)".to_owned(), value.to_string(), "an object is needed".to_owned());
            return Err(ModelError::Value { file: file.to_owned(), key, found, allowed });
        };
        Ok(Self { map, file })
    }

    /// A value that is neither absent nor null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&self, key: &str, allowed: &str) -> ModelError {
        let found = self.map.get(key).map_or_else(|| "absent".to_owned(), |value| shorten(&value.to_string()));
        ModelError::Value { file: self.file.to_owned(), key: key.to_owned(), found, allowed: allowed.to_owned() }
    }

    pub(crate) fn missing(&self, key: &str, help: &'static str) -> ModelError {
        ModelError::MissingKey { file: self.file.to_owned(), key: key.to_owned(), help }
    }

    pub(crate) fn text(&self, key: &str) -> Result<&'a str, ModelError> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.wrong(key, "a text is needed"))
    }

    pub(crate) fn flag(&self, key: &str, default: Option<bool>) -> Result<bool, ModelError> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => value.and_then(Value::as_bool).ok_or_else(|| self.wrong(key, "true or false is needed")),
        }
    }

    /// A whole number from 1.
    pub(crate) fn size(&self, key: &str, default: Option<u32>) -> Result<u32, ModelError> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => {
                let size = value.and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok());
                size.filter(|size| *size > 0).ok_or_else(|| self.wrong(key, "a whole number from 1 is needed"))
            }
        }
    }

    pub(crate) fn number(&self, key: &str, default: Option<f64>) -> Result<f64, ModelError> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => value.and_then(Value::as_f64).ok_or_else(|| self.wrong(key, "a number is needed")),
        }
    }

    /// A probability below 1.
    pub(crate) fn dropout(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let dropout = value.as_f64().filter(|dropout| (0.0..1.0).contains(dropout));
        dropout.map(Some).ok_or_else(|| self.wrong(key, "a number from 0 to below 1 is needed"))
    }

    /// A value of a type that serde can read.
    pub(crate) fn typed<T: DeserializeOwned>(
        &self,
        key: &str,
        default: Option<T>,
        allowed: &str,
    ) -> Result<T, ModelError> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => {
                let read = value.and_then(|value| T::deserialize(value).ok());
                read.ok_or_else(|| self.wrong(key, allowed))
            }
        }
    }

    /// Refuses an option unless it is absent, null, or one of the `harmless` values.
    pub(crate) fn refuse(&self, key: &str, harmless: &[Value], why: &str) -> Result<(), ModelError> {
        let used = self.get(key).is_some_and(|value| !harmless.iter().any(|allowed| same(value, allowed)));
        if used { Err(self.wrong(key, why)) } else { Ok(()) }
    }
}

/// Equality in Python's sense for numbers: `0` is `0.0`.
fn same(left: &Value, right: &Value) -> bool {
    left == right || left.as_f64().is_some_and(|number| right.as_f64() == Some(number))
}

/// Values in messages are cut at 120 characters.
pub(crate) fn shorten(text: &str) -> String {
    if text.chars().count() <= 120 { text.to_owned() } else { text.chars().take(119).chain(['…']).collect() }
}
