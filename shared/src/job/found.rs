//! Says what stands in a file, for messages of the form "must be …, found …".

use toml::de::DeValue;

use super::keys::Shape;

/// The longest quotation of a value in a message, in characters.
const LONGEST: usize = 40;

/// What a value is, in words.
pub(crate) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {:?}", cut(text)),
        DeValue::Integer(number) => format!("the whole number {}", cut(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", cut(&number.to_string())),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A text cut to a length that a message can quote.
pub(crate) fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

/// Whether the TOML type of a value is one that the shape takes.
pub(crate) fn accepts(shape: &Shape, value: &DeValue<'_>) -> bool {
    match shape {
        Shape::Flag => value.is_bool(),
        Shape::Whole(..) => value.is_integer(),
        Shape::Number(_) => value.is_integer() || value.is_float(),
        Shape::Text
        | Shape::Name
        | Shape::Variable
        | Shape::Place(_)
        | Shape::Adapter
        | Shape::Duration
        | Shape::Cron
        | Shape::Choice(_) => value.is_str(),
        Shape::List(..) => value.is_array(),
        Shape::Either(shapes) => shapes.iter().any(|shape| accepts(shape, value)),
        Shape::ByLayer(_) | Shape::Table(_) | Shape::Named(_) => value.is_table(),
    }
}

/// Help for a text that holds what was wanted: the quotes are too much.
pub(crate) fn unquoted(shape: &Shape, value: &DeValue<'_>) -> Option<String> {
    let text = value.as_str()?.trim();
    let inner = DeValue::parse(text).ok()?;
    (accepts(shape, inner.get_ref()) && !inner.get_ref().is_str()).then(|| format!("remove the quotes around {text}"))
}
