//! Columns: whether files have those that a task names, and whether their types fit.

use arrow_schema::{DataType, Field, Schema};
use graftwork_shared::{data::Columns, job::HeadKind};

use crate::{
    DataError, OpenFile,
    error::{did_you_mean, list_names},
};

/// What a column is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Text,
    Label,
    Group,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Label => "label",
            Self::Group => "group",
        }
    }
}

/// Whether the files have a task's columns, with types that fit: text columns hold texts, the label column of a
/// classification integers, texts or booleans, that of a regression numbers.
///
/// Errors: a missing column (lists those there are), a type that does not fit.
pub fn check_columns(files: &[OpenFile], columns: &Columns, kind: HeadKind) -> Result<(), DataError> {
    files.iter().try_for_each(|file| check_schema(&file.identity.location, &file.schema, columns, kind))
}

pub(crate) fn check_schema(
    location: &str,
    schema: &Schema,
    columns: &Columns,
    kind: HeadKind,
) -> Result<(), DataError> {
    for name in columns.text.names() {
        let field = find(location, schema, name, Role::Text)?;
        if !is_text(field.data_type()) {
            return Err(misfit(location, field, Role::Text, "a text column needs texts", "name another column"));
        }
    }
    let field = find(location, schema, &columns.label, Role::Label)?;
    let held = field.data_type();
    match kind {
        HeadKind::Classification if held.is_integer() || is_text(held) || *held == DataType::Boolean => Ok(()),
        HeadKind::Classification => {
            let help = if held.is_floating() { "use a regression head, or store class ids as integers" } else { HELP };
            Err(misfit(location, field, Role::Label, "a classification needs integers, texts or booleans", help))
        }
        HeadKind::Regression if held.is_integer() || held.is_floating() => Ok(()),
        HeadKind::Regression => {
            let help = if is_text(held) { "use a classification head, or store numbers" } else { HELP };
            Err(misfit(location, field, Role::Label, "a regression needs integers or floating-point numbers", help))
        }
    }
}

const HELP: &str = "name another column or convert it";

/// A group column may hold whatever has one plain text form.
pub(crate) fn check_group(location: &str, schema: &Schema, name: &str) -> Result<(), DataError> {
    let field = find(location, schema, name, Role::Group)?;
    let held = field.data_type();
    if held.is_integer() || is_text(held) || *held == DataType::Boolean {
        return Ok(());
    }
    Err(misfit(location, field, Role::Group, "groups are told apart by texts, integers or booleans", HELP))
}

fn find<'a>(location: &str, schema: &'a Schema, name: &str, role: Role) -> Result<&'a Field, DataError> {
    schema.field_with_name(name).map_err(|_| {
        let names = || schema.fields().iter().map(|field| field.name().as_str());
        DataError::MissingColumn {
            location: location.to_owned(),
            role: role.name().to_owned(),
            column: name.to_owned(),
            columns: list_names(names()),
            hint: did_you_mean(name, names()),
        }
    })
}

fn misfit(location: &str, field: &Field, role: Role, wanted: &str, help: &str) -> DataError {
    DataError::ColumnType {
        location: location.to_owned(),
        role: role.name().to_owned(),
        column: field.name().clone(),
        found: type_in_words(field.data_type()),
        wanted: wanted.to_owned(),
        help: help.to_owned(),
    }
}

/// What a column holds, in the words of a person who never heard of Arrow.
pub fn type_in_words(held: &DataType) -> String {
    use DataType::{
        Binary, BinaryView, Boolean, Date32, Date64, Decimal32, Decimal64, Decimal128, Decimal256, Dictionary,
        Duration, FixedSizeBinary, FixedSizeList, Float16, Float32, Float64, Int8, Int16, Int32, Int64, Interval,
        LargeBinary, LargeList, LargeListView, LargeUtf8, List, ListView, Map, Null, RunEndEncoded, Struct, Time32,
        Time64, Timestamp, UInt8, UInt16, UInt32, UInt64, Union, Utf8, Utf8View,
    };
    let bits = || held.primitive_width().map_or(0, |bytes| bytes * 8);
    match held {
        Utf8 | LargeUtf8 | Utf8View => "texts".to_owned(),
        Boolean => "booleans".to_owned(),
        Int8 | Int16 | Int32 | Int64 => format!("{}-bit integers", bits()),
        UInt8 | UInt16 | UInt32 | UInt64 => format!("{}-bit integers without a sign", bits()),
        Float16 | Float32 | Float64 => format!("{}-bit floating-point numbers", bits()),
        Decimal32(..) | Decimal64(..) | Decimal128(..) | Decimal256(..) => "decimal numbers".to_owned(),
        Date32 | Date64 => "dates".to_owned(),
        Time32(_) | Time64(_) => "times of day".to_owned(),
        Timestamp(..) => "points in time".to_owned(),
        Duration(_) | Interval(_) => "spans of time".to_owned(),
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => "bytes without a text type".to_owned(),
        List(element) | ListView(element) | LargeList(element) | LargeListView(element) | FixedSizeList(element, _) => {
            format!("lists of {}", type_in_words(element.data_type()))
        }
        Struct(fields) => {
            format!("records of {}", list_names(fields.iter().map(|field| field.name().as_str())))
        }
        Map(..) => "maps from keys to values".to_owned(),
        Union(..) => "values of several types".to_owned(),
        Dictionary(_, values) => type_in_words(values),
        RunEndEncoded(_, values) => type_in_words(values.data_type()),
        Null => "no values at all".to_owned(),
    }
}

pub(crate) fn is_text(held: &DataType) -> bool {
    matches!(held, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The first thing in which two files' columns differ, or `None`. Whether nulls are allowed does not count.
pub(crate) fn first_difference(first: &Schema, second: &Schema) -> Option<String> {
    for field in first.fields() {
        match second.field_with_name(field.name()) {
            Err(_) => return Some(format!("it has no column {:?}", field.name())),
            Ok(other) if other.data_type() != field.data_type() => {
                return Some(format!(
                    "column {:?} holds {} in the first and {} in the second",
                    field.name(),
                    type_in_words(field.data_type()),
                    type_in_words(other.data_type())
                ));
            }
            Ok(_) => {}
        }
    }
    let extra = second.fields().iter().find(|field| first.field_with_name(field.name()).is_err())?;
    Some(format!("it has a column {:?} more", extra.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_said_in_the_words_of_people() {
        let element = |held| std::sync::Arc::new(Field::new("item", held, true));
        for (held, words) in [
            (DataType::List(element(DataType::Utf8)), "lists of texts"),
            (DataType::LargeList(element(DataType::Int32)), "lists of 32-bit integers"),
            (DataType::Float64, "64-bit floating-point numbers"),
            (DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)), "texts"),
            (DataType::Struct(vec![Field::new("id", DataType::Int8, true)].into()), "records of \"id\""),
        ] {
            assert_eq!(type_in_words(&held), words);
        }
    }
}
