//! The JSON schema of job files, for completion and checks in editors.
//!
//! Generated from the table of keys alone. It can only say what holds for single values; what keys say together is
//! checked by [`super::parse()`].

use serde_json::{Map, Value, json};

use super::{
    duration,
    keys::{Bounds, Key, Missing, Section, Shape, TOP},
};

/// The pattern of [`crate::id::Name`].
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$";

/// The JSON schema (draft 2020-12) of job files, with descriptions, defaults and allowed values.
pub fn json_schema() -> Value {
    let mut schema = table(&TOP);
    let definitions: Map<String, Value> =
        TOP.all().into_iter().skip(1).map(|section| (section.name.to_owned(), table(section))).collect();
    let head = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Graftwork job",
    });
    let entries = schema.as_object_mut().expect("a table's schema is an object");
    let mut whole = head.as_object().cloned().unwrap_or_default();
    whole.append(entries);
    whole.insert("$defs".to_owned(), definitions.into());
    whole.into()
}

fn table(section: &Section) -> Value {
    let properties: Map<String, Value> = section.keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let required: Vec<&str> =
        section.keys.iter().filter(|key| matches!(key.missing, Missing::Required)).map(|key| key.name).collect();
    let exclusive: Vec<Value> =
        section.exclusive.iter().map(|(first, second)| json!({"not": {"required": [first, second]}})).collect();
    let mut schema = json!({
        "type": "object",
        "description": section.about,
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    if !exclusive.is_empty() {
        schema["allOf"] = exclusive.into();
    }
    schema
}

fn property(key: &Key) -> Value {
    let mut schema = shape(&key.shape);
    let absent = match key.missing {
        Missing::Required => " Required.".to_owned(),
        Missing::Value(_) => String::new(),
        Missing::Means(words) => format!(" Without it: {words}."),
        Missing::Preset => " Without it: what the method's preset says.".to_owned(),
    };
    schema["description"] = format!("{}{absent}", key.about).into();
    if let Missing::Value(text) = key.missing {
        schema["default"] = json_of_toml(text);
    }
    if !matches!(key.shape, Shape::Table(_) | Shape::Flag) {
        schema["examples"] = json!([json_of_toml(key.example)]);
    }
    schema
}

fn shape(shape_of: &Shape) -> Value {
    match shape_of {
        Shape::Flag => json!({"type": "boolean"}),
        Shape::Whole(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Shape::Number(bounds) => number(bounds),
        // The fields of a cron line are read by a parser of their own: an editor sees that something stands there.
        Shape::Text | Shape::Place(_) | Shape::Adapter | Shape::Cron => json!({"type": "string", "pattern": "\\S"}),
        Shape::Name => json!({"type": "string", "pattern": NAME}),
        Shape::Variable => json!({"type": "string", "pattern": "^[A-Z_][A-Z0-9_]{0,63}$"}),
        Shape::Duration => json!({"type": "string", "pattern": duration::PATTERN}),
        Shape::Choice(words) => json!({"enum": words}),
        Shape::List(element, least, most) => {
            let mut list = json!({"type": "array", "items": shape(element), "minItems": least});
            if *most < usize::MAX {
                list["maxItems"] = json!(most);
            }
            list
        }
        Shape::Either(shapes) => json!({"anyOf": shapes.iter().map(shape).collect::<Vec<_>>()}),
        Shape::ByLayer(value) => json!({
            "type": "object",
            "patternProperties": {"^([0-9]+|default)$": shape(value)},
            "additionalProperties": false,
            "minProperties": 1,
        }),
        Shape::Table(section) => json!({"$ref": format!("#/$defs/{}", section.name)}),
        Shape::Named(section) => json!({
            "type": "object",
            "propertyNames": {"pattern": NAME},
            "additionalProperties": {"$ref": format!("#/$defs/{}", section.name)},
        }),
    }
}

fn number(bounds: &Bounds) -> Value {
    let least = if bounds.with_least { "minimum" } else { "exclusiveMinimum" };
    let most = if bounds.with_most { "maximum" } else { "exclusiveMaximum" };
    json!({"type": "number", least: bounds.least, most: bounds.most})
}

/// A TOML value of the table of keys as JSON.
fn json_of_toml(text: &str) -> Value {
    let table: toml::Table =
        toml::from_str(&format!("value = {text}")).expect("examples and defaults of the table of keys are TOML");
    serde_json::to_value(&table["value"]).expect("a TOML value without dates can be written as JSON")
}
