//! The places of a job file, for whoever writes it anew somewhere else.
//!
//! Works on the text's tables and not on the resolved job: what the user left out stays out, so that another version of
//! the programs reads no key that it may not know.

use std::path::Path;

use toml::{Table, Value};

use super::{
    keys::{Section, Shape, TOP},
    place,
};

/// The tables of a job file, every local path and address in them replaced.
pub fn with_places(text: &str, replace: &dyn Fn(&str) -> String) -> Result<Table, toml::de::Error> {
    let mut tables: Table = text.parse()?;
    section(&TOP, &mut tables, replace);
    Ok(tables)
}

/// A place of a job file in this folder as the resolved job keeps it: addresses as they stand, local paths absolute.
pub fn resolved_place(folder: &Path, text: &str) -> String {
    place::resolved(folder, text)
}

/// Whether a place is an address with a scheme and no local path.
pub fn is_address(text: &str) -> bool {
    place::scheme(text).is_some()
}

fn section(section_of: &Section, table: &mut Table, replace: &dyn Fn(&str) -> String) {
    for key in section_of.keys {
        if let Some(found) = table.get_mut(key.name) {
            value(&key.shape, found, replace);
        }
    }
}

fn value(shape: &Shape, found: &mut Value, replace: &dyn Fn(&str) -> String) {
    match (shape, found) {
        (Shape::Place(_), Value::String(text)) => *text = replace(text),
        (Shape::Adapter, Value::String(text)) if text.contains('/') => *text = replace(text),
        (Shape::List(element, ..), Value::Array(elements)) => {
            elements.iter_mut().for_each(|found| value(element, found, replace));
        }
        // Shapes of one value have types of their own, so one of them takes it.
        (Shape::Either(shapes), found) => shapes.iter().for_each(|shape| value(shape, found, replace)),
        (Shape::Table(below), Value::Table(table)) => section(below, table, replace),
        (Shape::Named(below), Value::Table(tables)) => {
            tables.iter_mut().filter_map(|(_, found)| found.as_table_mut()).for_each(|t| section(below, t, replace));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::parse;

    #[test]
    fn a_file_with_its_places_written_out_says_the_same_elsewhere() {
        let text = include_str!("../../../jobs/tour.toml");
        let here = Path::new("/home/ada/jobs");
        let tables = with_places(text, &|place| resolved_place(here, place)).unwrap();
        let written = toml::to_string(&tables).unwrap();
        let moved = parse(&written, Path::new("/elsewhere")).job.unwrap();
        let mut wanted = parse(text, here).job.unwrap();
        assert_eq!(moved, wanted);
        // And it is the places that were written out.
        wanted = parse(text, Path::new("/elsewhere")).job.unwrap();
        assert_ne!(moved.digest(), wanted.digest());
        assert!(!written.contains("../"), "{written}");
    }
}
