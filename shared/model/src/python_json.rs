//! JSON as Python's `json.dump(value, indent=2)` writes it, so that files compare equal with the peer's byte by byte.
//!
//! Differences from `serde_json`: non-ASCII characters are escaped, floats have Python's notation (`1e-05`, `1.0`),
//! and keys are sorted on request.

use std::fmt::Write;

use serde_json::{Number, Value};

/// Whether keys are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    Sorted,
    AsGiven,
}

/// The text of a value, without a newline at the end.
pub(crate) fn to_bytes(value: &Value, keys: Keys) -> Vec<u8> {
    let mut text = String::new();
    write_value(&mut text, value, keys, 0);
    text.into_bytes()
}

fn write_value(text: &mut String, value: &Value, keys: Keys, depth: usize) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&python_number(number)),
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            write_block(text, ['[', ']'], items.iter(), depth, |text, item| write_value(text, item, keys, depth + 1));
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if keys == Keys::Sorted {
                entries.sort_by(|left, right| left.0.cmp(right.0));
            }
            write_block(text, ['{', '}'], entries.into_iter(), depth, |text, (key, value)| {
                write_string(text, key);
                text.push_str(": ");
                write_value(text, value, keys, depth + 1);
            });
        }
    }
}

fn write_block<T>(
    text: &mut String,
    [open, close]: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    depth: usize,
    mut write_item: impl FnMut(&mut String, T),
) {
    text.push(open);
    let any = items.len() > 0;
    for (position, item) in items.enumerate() {
        text.push_str(if position == 0 { "\n" } else { ",\n" });
        text.push_str(&"  ".repeat(depth + 1));
        write_item(text, item);
    }
    if any {
        text.push('\n');
        text.push_str(&"  ".repeat(depth));
    }
    text.push(close);
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for unit in string.encode_utf16() {
        match u8::try_from(unit) {
            Ok(b'"') => text.push_str("\\\""),
            Ok(b'\\') => text.push_str("\\\\"),
            Ok(b'\n') => text.push_str("\\n"),
            Ok(b'\r') => text.push_str("\\r"),
            Ok(b'\t') => text.push_str("\\t"),
            Ok(8) => text.push_str("\\b"),
            Ok(12) => text.push_str("\\f"),
            Ok(byte @ 0x20..=0x7f) => text.push(char::from(byte)),
            _ => write!(text, "\\u{unit:04x}").expect("a string takes every write"),
        }
    }
    text.push('"');
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16.
fn python_number(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if float == 0.0 || (-4..16).contains(&exponent) {
        let fixed = format!("{float}");
        return if fixed.contains('.') { fixed } else { fixed + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A number as Python would hold it after a user typed it: whole numbers as integers.
pub(crate) fn integer_if_whole(number: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    if number.fract() == 0.0 && number.abs() < 9e15 { Value::from(number as i64) } else { Value::from(number) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_have_pythons_notation() {
        let cases = [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (0.1, "0.1"),
            (1e-300, "1e-300"),
            (-2.5, "-2.5"),
        ];
        for (float, text) in cases {
            assert_eq!(python_number(&Number::from_f64(float).unwrap()), text);
        }
        assert_eq!((integer_if_whole(16.0), integer_if_whole(2.5)), (json!(16), json!(2.5)));
    }

    #[test]
    fn blocks_are_indented_and_keys_sorted() {
        let value = json!({"b": [], "a": {"y": [1, {"k": null}], "x": {}}, "B": true});
        let sorted = String::from_utf8(to_bytes(&value, Keys::Sorted)).unwrap();
        let expected = "{\n  \"B\": true,\n  \"a\": {\n    \"x\": {},\n    \"y\": [\n      1,\n      {\n        \
                        \"k\": null\n      }\n    ]\n  },\n  \"b\": []\n}";
        assert_eq!(sorted, expected);
        assert!(to_bytes(&value, Keys::AsGiven).starts_with(b"{\n  \"b\": [],"));
    }

    #[test]
    fn strings_are_ascii() {
        let text = to_bytes(&json!("a\"\\\n\u{7f}\u{1}é😀"), Keys::Sorted);
        assert_eq!(text, b"\"a\\\"\\\\\\n\x7f\\u0001\\u00e9\\ud83d\\ude00\"");
    }
}
