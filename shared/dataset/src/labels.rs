//! Labels: finding a split's label set, and turning label values into class ids or targets.

use std::collections::{BTreeSet, HashMap};

use arrow_array::{Array, ArrayRef, cast::AsArray, types::Float64Type};
use arrow_schema::DataType;
use graftwork_shared::{
    data::{Columns, SplitManifest},
    head::HeadOutput,
    job::HeadKind,
};

use crate::{
    Access, DataError, Label, columns::Role, error::list_names, scan::scan_texts, select::Membership, shard::texts,
};

/// More distinct values than this are no classes of a text classification.
const MOST_LABELS: usize = 10_000;

/// The distinct labels of a split: numbers in numeric order, texts in byte order. Reads the label column, and the
/// group column where the split rule has one. Prefer [`OpenFile::labels`](crate::OpenFile::labels) where files have it.
///
/// Errors: a null label, more than 10,000 values, and all that reading can meet.
pub async fn find_labels(
    manifest: &SplitManifest,
    columns: &Columns,
    access: &Access,
) -> Result<Vec<String>, DataError> {
    let membership = Membership::of(manifest);
    let mut kept: Option<Vec<bool>> = None;
    if let Some((membership, group)) = membership.as_ref().and_then(|m| Some((m, m.group_by.as_deref()?))) {
        let mut keeps = Vec::new();
        scan_texts(manifest, (group, Role::Group), access, |_, value| keeps.push(membership.keeps_group(value)))
            .await?;
        kept = Some(keeps);
    }
    let keeps = |number: u64| match (&kept, &membership) {
        (Some(kept), _) => usize::try_from(number).is_ok_and(|number| kept[number]),
        (None, Some(membership)) => membership.keeps_row(number),
        (None, None) => true,
    };
    let mut found = BTreeSet::new();
    scan_texts(manifest, (&columns.label, Role::Label), access, |number, value| {
        if found.len() <= MOST_LABELS && !found.contains(value) && keeps(number) {
            found.insert(value.to_owned());
        }
    })
    .await?;
    if found.len() > MOST_LABELS {
        return Err(DataError::TooManyLabels {
            column: columns.label.clone(),
            bound: MOST_LABELS,
            examples: list_names(found.iter().take(3).map(String::as_str)),
            help: "use a regression head or another label column".to_owned(),
        });
    }
    let mut labels: Vec<String> = found.into_iter().collect();
    if labels.iter().all(|label| label.parse::<i128>().is_ok()) {
        labels.sort_by_key(|label| label.parse::<i128>().unwrap_or_default());
    }
    Ok(labels)
}

/// How label values become class ids or targets.
///
/// Texts are looked up among the label names. Integers are looked up too where every name is an integer, and are class
/// ids where not; booleans likewise with the names `false` and `true`.
#[derive(Clone, Debug)]
pub(crate) enum LabelReader {
    Classes { ids: HashMap<String, u32>, shown: String, integer_names: bool, boolean_names: bool },
    Values,
}

/// Labels of some rows, in as few bytes as they need.
#[derive(Clone, Debug)]
pub(crate) enum Labels {
    Classes(Vec<u32>),
    Values(Vec<f32>),
}

impl Labels {
    pub(crate) fn get(&self, index: usize) -> Label {
        match self {
            Self::Classes(classes) => Label::Class(classes[index]),
            Self::Values(values) => Label::Value(values[index]),
        }
    }
}

/// A label that cannot be read: row within the column, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadLabel {
    Null(usize),
    Unknown(usize, String),
    NotFinite(usize, String),
}

impl LabelReader {
    pub(crate) fn new(output: &HeadOutput) -> Self {
        let HeadOutput::Classification { labels } = output else { return Self::Values };
        Self::Classes {
            ids: (0..).zip(labels).map(|(id, label)| (label.clone(), id)).collect(),
            shown: list_names(labels.iter().map(String::as_str)),
            integer_names: labels.iter().all(|label| label.parse::<i128>().is_ok()),
            boolean_names: labels.iter().all(|label| ["false", "true"].contains(&label.as_str())),
        }
    }

    pub(crate) fn kind(&self) -> HeadKind {
        match self {
            Self::Classes { .. } => HeadKind::Classification,
            Self::Values => HeadKind::Regression,
        }
    }

    /// The label set, for a message.
    pub(crate) fn allowed(&self) -> &str {
        match self {
            Self::Classes { shown, .. } => shown,
            Self::Values => "finite numbers",
        }
    }

    /// Reads the rows of a column that `keeps` names.
    pub(crate) fn read(&self, column: &ArrayRef, keeps: &[bool]) -> Result<Labels, BadLabel> {
        match self {
            Self::Classes { .. } => self.read_classes(column, keeps).map(Labels::Classes),
            Self::Values => read_values(column, keeps).map(Labels::Values),
        }
    }

    fn read_classes(&self, column: &ArrayRef, keeps: &[bool]) -> Result<Vec<u32>, BadLabel> {
        let Self::Classes { ids, integer_names, boolean_names, .. } = self else { return Ok(Vec::new()) };
        let by_name = match column.data_type() {
            DataType::Boolean => *boolean_names,
            held if held.is_integer() => *integer_names,
            _ => true,
        };
        let quoted = !column.data_type().is_integer() && *column.data_type() != DataType::Boolean;
        let values = texts(column).map_err(|error| BadLabel::Unknown(0, error))?;
        let mut classes = Vec::with_capacity(values.len());
        for (index, kept) in keeps.iter().enumerate().take(values.len()) {
            if !kept {
                classes.push(0);
                continue;
            }
            if values.is_null(index) {
                return Err(BadLabel::Null(index));
            }
            let value = values.value(index);
            let class = if by_name { ids.get(value).copied() } else { class_id(value, ids.len()) };
            let shown = || if quoted { format!("{value:?}") } else { value.to_owned() };
            classes.push(class.ok_or_else(|| BadLabel::Unknown(index, shown()))?);
        }
        Ok(classes)
    }
}

fn class_id(value: &str, classes: usize) -> Option<u32> {
    let id = match value {
        "false" => 0,
        "true" => 1,
        number => number.parse::<u32>().ok()?,
    };
    (id as usize).lt(&classes).then_some(id)
}

fn read_values(column: &ArrayRef, keeps: &[bool]) -> Result<Vec<f32>, BadLabel> {
    let cast =
        arrow_cast::cast(column, &DataType::Float64).map_err(|error| BadLabel::NotFinite(0, error.to_string()))?;
    let numbers = cast.as_primitive::<Float64Type>();
    let mut values = Vec::with_capacity(numbers.len());
    for (index, kept) in keeps.iter().enumerate().take(numbers.len()) {
        if !kept {
            values.push(0.0);
            continue;
        }
        if numbers.is_null(index) {
            return Err(BadLabel::Null(index));
        }
        #[expect(clippy::cast_possible_truncation, reason = "targets are f32; what overflows is refused below")]
        let value = numbers.value(index) as f32;
        if !value.is_finite() {
            return Err(BadLabel::NotFinite(index, numbers.value(index).to_string()));
        }
        values.push(value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BooleanArray, Float64Array, Int64Array, StringArray};

    use super::*;

    fn classes(labels: &[&str]) -> LabelReader {
        LabelReader::new(&HeadOutput::Classification { labels: labels.iter().map(ToString::to_string).collect() })
    }

    fn read(reader: &LabelReader, column: ArrayRef) -> Result<Vec<u32>, BadLabel> {
        let keeps = vec![true; column.len()];
        reader.read(&column, &keeps).map(|labels| match labels {
            Labels::Classes(classes) => classes,
            Labels::Values(_) => panic!("classes were asked for"),
        })
    }

    #[test]
    fn integers_are_names_where_names_are_integers_and_ids_where_not() {
        let column = || Arc::new(Int64Array::from(vec![1, 2]));
        assert_eq!(read(&classes(&["1", "2"]), column()), Ok(vec![0, 1]));
        assert_eq!(read(&classes(&["a", "b", "c"]), column()), Ok(vec![1, 2]));
        assert_eq!(read(&classes(&["a", "b"]), column()), Err(BadLabel::Unknown(1, "2".to_owned())));
    }

    #[test]
    fn texts_and_booleans_are_looked_up() {
        let texts = Arc::new(StringArray::from(vec!["spam", "ham"]));
        assert_eq!(read(&classes(&["ham", "spam"]), texts.clone()), Ok(vec![1, 0]));
        assert_eq!(read(&classes(&["ham"]), texts), Err(BadLabel::Unknown(0, "\"spam\"".to_owned())));
        let flags = || Arc::new(BooleanArray::from(vec![true, false]));
        assert_eq!(read(&classes(&["true", "false"]), flags()), Ok(vec![0, 1]));
        assert_eq!(read(&classes(&["no", "yes"]), flags()), Ok(vec![1, 0]));
    }

    #[test]
    fn targets_must_be_finite_and_there() {
        let read = |values: Vec<Option<f64>>| {
            let column: ArrayRef = Arc::new(Float64Array::from(values));
            read_values(&column, &vec![true; column.len()])
        };
        assert_eq!(read(vec![Some(0.5), Some(-2.0)]), Ok(vec![0.5, -2.0]));
        assert_eq!(read(vec![Some(0.5), None]), Err(BadLabel::Null(1)));
        assert!(matches!(read(vec![Some(f64::NAN)]), Err(BadLabel::NotFinite(0, _))));
        assert!(matches!(read(vec![Some(1e300)]), Err(BadLabel::NotFinite(0, _))));
    }
}
