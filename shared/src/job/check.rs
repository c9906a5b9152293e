//! Checks each value of a job file by itself against the table of keys: known keys, types, bounds, words, places.
//!
//! Nothing here compares one key with another (that is [`super::resolve`]), apart from pairs that exclude each other.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Spans, duration,
    found::{self, accepts, found, unquoted},
    keys::{Key, Missing, Section, Shape, TOP, quoted},
    place, secret,
    suggest::nearest,
    tree::{Item, Table, Value},
};
use crate::{
    diagnostic::{Diagnostic, SECRET},
    id::Name,
    schedule::Schedule,
};

/// The checked tree, the places of its keys, and what is wrong with it.
pub(crate) struct Checked {
    /// Values of allowed shapes.
    pub(crate) tree: Table,
    /// Places by dotted path.
    pub(crate) spans: Spans,
    /// Problems of single values.
    pub(crate) problems: Vec<Diagnostic>,
}

/// Checks a whole file. Missing keys are not reported after a syntax error, which may have swallowed them.
pub(crate) fn check(root: &DeTable<'_>, after_syntax_error: bool) -> Checked {
    let mut check = Check { spans: Spans::default(), problems: Vec::new(), after_syntax_error };
    let tree = check.table(&TOP, root, "", 0..0);
    Checked { tree, spans: check.spans, problems: check.problems }
}

struct Check {
    spans: Spans,
    problems: Vec<Diagnostic>,
    after_syntax_error: bool,
}

/// What a value belongs to, for messages.
struct At<'p> {
    /// Dotted path.
    path: &'p str,
    /// How messages call it.
    what: String,
    /// Where its key stands.
    key_span: Range<usize>,
    /// A line of TOML that is allowed.
    example: String,
}

impl Check {
    fn table(&mut self, section: &'static Section, entries: &DeTable<'_>, path: &str, span: Range<usize>) -> Table {
        let mut table = Table { key: span, entries: Vec::new() };
        for (name, value) in entries {
            let (key_span, name) = (name.span(), name.get_ref().as_ref());
            let Some(key) = section.key(name) else {
                self.unknown_key(section, path, name, key_span, value);
                continue;
            };
            let path = join(path, name);
            let item = self.item(key, value, &path, key_span);
            table.entries.push((name.to_owned(), item));
        }
        for (first, second) in section.exclusive {
            if table.has(first) && table.has(second) {
                let span = self.spans.of(&join(path, second)).unwrap_or_default();
                let message = format!("`{first}` and `{second}` exclude each other");
                self.problems.push(Diagnostic::error("conflict", message).at(span).help("keep one of the two"));
            }
        }
        self.missing_keys(section, &table, path);
        table
    }

    fn item(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>, path: &str, key_span: Range<usize>) -> Item {
        let span = if value.get_ref().is_table() { key_span.clone() } else { value.span() };
        self.spans.0.insert(path.to_owned(), span.clone());
        let at = At {
            path,
            what: format!("`{}`", key.name),
            key_span: key_span.clone(),
            example: format!("{} = {}", key.name, key.example),
        };
        let value = self.value(&key.shape, value, &at);
        Item { key: key_span, span, value, used: std::cell::Cell::new(false) }
    }

    fn value(&mut self, shape: &Shape, value: &Spanned<DeValue<'_>>, at: &At<'_>) -> Value {
        let span = value.span();
        match (shape, value.get_ref()) {
            (Shape::Variable, found) => self.variable(found.as_str(), span, at),
            (_, DeValue::String(text)) if secret::looks_secret(text) => self.secret(span, &at.what),
            (Shape::Flag, DeValue::Boolean(flag)) => Value::Flag(*flag),
            (Shape::Whole(least, most), DeValue::Integer(number)) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) if (*least..=*most).contains(&number) => Value::Whole(number),
                    _ => self.out_of_range(shape, value, at),
                }
            }
            (Shape::Number(bounds), DeValue::Integer(number)) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) if bounds.hold(number as f64) => Value::Whole(number),
                    _ => self.out_of_range(shape, value, at),
                }
            }
            (Shape::Number(bounds), DeValue::Float(number)) => match number.as_str().parse::<f64>() {
                Ok(number) if bounds.hold(number) => Value::Number(number),
                _ => self.out_of_range(shape, value, at),
            },
            (_, DeValue::String(text)) if text.trim().is_empty() && shape_takes_text(shape) => {
                self.refuse("empty-text", span, format!("{} is empty", at.what), at)
            }
            (Shape::Text, DeValue::String(text)) => Value::Text(text.to_string()),
            (Shape::Place(schemes), DeValue::String(text)) => self.place(text, schemes, span),
            (Shape::Adapter, DeValue::String(text)) if text.contains('/') => self.place(text, &["hf"], span),
            (Shape::Name | Shape::Adapter, DeValue::String(text)) => self.name(text, span, at),
            (Shape::Duration, DeValue::String(text)) => match duration::seconds(text) {
                Some(seconds) => Value::Whole(seconds),
                None => self.out_of_range(shape, value, at),
            },
            (Shape::Cron, DeValue::String(text)) => match Schedule::parse(text) {
                Ok(schedule) => Value::Text(schedule.to_string()),
                Err(problem) => self.refuse("bad-cron", span, format!("{} {problem}", at.what), at),
            },
            (Shape::Choice(words), DeValue::String(text)) => self.choice(text, words, span, at),
            (Shape::List(element, least, most), DeValue::Array(array)) => {
                if array.len() < *least || array.len() > *most {
                    let message = format!("{} must be {}, found a list of {}", at.what, shape.allowed(), array.len());
                    return self.refuse("out-of-range", span, message, at);
                }
                self.list(element, array, at)
            }
            // A number in quotes is meant as one.
            (Shape::Either(_), DeValue::String(text)) if text.parse::<f64>().is_ok() => {
                self.wrong_type(shape, value, at)
            }
            (Shape::Either(shapes), found) => match shapes.iter().find(|shape| accepts(shape, found)) {
                Some(shape) => self.value(shape, value, at),
                None => self.wrong_type(shape, value, at),
            },
            (Shape::ByLayer(element), DeValue::Table(entries)) => self.by_layer(element, entries, at),
            (Shape::Table(section), DeValue::Table(entries)) => {
                Value::Table(self.table(section, entries, at.path, at.key_span.clone()))
            }
            (Shape::Named(section), DeValue::Table(entries)) => self.named(section, entries, at),
            _ => self.wrong_type(shape, value, at),
        }
    }

    fn list(&mut self, element: &Shape, array: &[Spanned<DeValue<'_>>], at: &At<'_>) -> Value {
        let mut elements = Vec::new();
        for (index, value) in array.iter().enumerate() {
            let path = join(at.path, &index.to_string());
            self.spans.0.insert(path.clone(), value.span());
            let what = format!("element {} of {}", index + 1, at.what);
            let at = At { path: &path, what, key_span: at.key_span.clone(), example: at.example.clone() };
            elements.push((self.value(element, value, &at), value.span()));
        }
        let refused = elements.iter().any(|(value, _)| matches!(value, Value::Refused));
        if refused && !matches!(element, Shape::Adapter) { Value::Refused } else { Value::List(elements) }
    }

    fn by_layer(&mut self, element: &Shape, entries: &DeTable<'_>, at: &At<'_>) -> Value {
        let mut table = Table { key: at.key_span.clone(), entries: Vec::new() };
        for (name, value) in entries {
            let (key_span, name) = (name.span(), name.get_ref().as_ref());
            if name != "default" && name.parse::<u16>().map(|layer| layer.to_string()).as_deref() != Ok(name) {
                let message = format!("{name:?} is neither a layer number nor `default`");
                self.refuse("unknown-key", key_span, message, at);
                continue;
            }
            let path = join(at.path, name);
            self.spans.0.insert(path.clone(), value.span());
            let what = format!("{} of layer {name}", at.what);
            let below = At { path: &path, what, key_span: key_span.clone(), example: at.example.clone() };
            let checked = self.value(element, value, &below);
            let item = Item { key: key_span, span: value.span(), value: checked, used: std::cell::Cell::new(true) };
            table.entries.push((name.to_owned(), item));
        }
        if entries.is_empty() {
            return self.refuse("out-of-range", at.key_span.clone(), format!("{} names no layer", at.what), at);
        }
        Value::Table(table)
    }

    fn named(&mut self, section: &'static Section, entries: &DeTable<'_>, at: &At<'_>) -> Value {
        let mut table = Table { key: at.key_span.clone(), entries: Vec::new() };
        for (name, value) in entries {
            let (key_span, name) = (name.span(), name.get_ref().as_ref());
            let path = join(at.path, name);
            self.spans.0.insert(path.clone(), key_span.clone());
            if let Err(error) = name.parse::<Name>() {
                let problem = Diagnostic::error("bad-name", error.to_string()).at(key_span.clone());
                self.problems.push(problem.help("names become parts of file paths and of tensor names"));
            }
            let value = if let DeValue::Table(entries) = value.get_ref() {
                Value::Table(self.table(section, entries, &path, key_span.clone()))
            } else {
                let place = section.places[0];
                let message = format!("`{path}` must be a table, found {}", found(value.get_ref()));
                let problem = Diagnostic::error("wrong-type", message).at(value.span());
                let kind = place.trim_end_matches(".NAME");
                self.problems.push(problem.help(format!("each of the {kind} is a table of its own: `[{place}]`")));
                Value::Refused
            };
            let item = Item { key: key_span.clone(), span: key_span, value, used: std::cell::Cell::new(true) };
            table.entries.push((name.to_owned(), item));
        }
        Value::Table(table)
    }

    fn name(&mut self, text: &str, span: Range<usize>, at: &At<'_>) -> Value {
        match text.parse::<Name>() {
            Ok(_) => Value::Text(text.to_owned()),
            Err(error) => self.refuse("bad-name", span, format!("{}: {error}", at.what), at),
        }
    }

    fn place(&mut self, text: &str, schemes: &[&str], span: Range<usize>) -> Value {
        match place::problem(text, schemes) {
            None => Value::Text(text.to_owned()),
            Some((message, mend)) => {
                self.problems.push(Diagnostic::error("bad-place", message).at(span).help(mend));
                Value::Refused
            }
        }
    }

    fn choice(&mut self, text: &str, words: &[&str], span: Range<usize>, at: &At<'_>) -> Value {
        if words.contains(&text) {
            return Value::Text(text.to_owned());
        }
        let message = format!("{} cannot be {:?}: it must be one of {}", at.what, found::cut(text), quoted(words));
        let help = match nearest(text, words.iter().copied()) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!("for example `{}`", at.example),
        };
        self.problems.push(Diagnostic::error("unknown-value", message).at(span).help(help));
        Value::Refused
    }

    fn variable(&mut self, text: Option<&str>, span: Range<usize>, at: &At<'_>) -> Value {
        let legal = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        match text {
            Some(text)
                if text.len() <= 64
                    && text.bytes().all(legal)
                    && text.bytes().next().is_some_and(|b| !b.is_ascii_digit())
                    && !secret::looks_secret(text) =>
            {
                Value::Text(text.to_owned())
            }
            _ => self.secret(span, &at.what),
        }
    }

    fn secret(&mut self, span: Range<usize>, what: &str) -> Value {
        let message = format!("{what} may hold a secret, so its value is refused and not shown");
        self.problems.push(Diagnostic::error(SECRET, message).at(span).help(
            "put the secret into an environment variable of the worker and name that variable here in capitals, such \
             as `credentials = \"HF_TOKEN\"`",
        ));
        Value::Refused
    }

    fn out_of_range(&mut self, shape: &Shape, value: &Spanned<DeValue<'_>>, at: &At<'_>) -> Value {
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            other => found(other),
        };
        let message = format!("{} must be {}, found {}", at.what, shape.allowed(), found::cut(&number));
        self.refuse("out-of-range", value.span(), message, at)
    }

    fn wrong_type(&mut self, shape: &Shape, value: &Spanned<DeValue<'_>>, at: &At<'_>) -> Value {
        self.secrets_below(value);
        let message = format!("{} must be {}, found {}", at.what, shape.allowed(), found(value.get_ref()));
        let help = match shape {
            Shape::Named(section) => format!("write one table for each: `[{}]`", section.places[0]),
            Shape::Table(_) => format!("write a table `[{}]`", at.path),
            _ => unquoted(shape, value.get_ref()).unwrap_or_else(|| format!("for example `{}`", at.example)),
        };
        let span = if value.get_ref().is_table() { at.key_span.clone() } else { value.span() };
        self.problems.push(Diagnostic::error("wrong-type", message).at(span).help(help));
        Value::Refused
    }

    fn refuse(&mut self, code: &str, span: Range<usize>, message: String, at: &At<'_>) -> Value {
        let help = format!("for example `{}`", at.example);
        self.problems.push(Diagnostic::error(code, message).at(span).help(help));
        Value::Refused
    }

    fn unknown_key(
        &mut self,
        section: &Section,
        path: &str,
        name: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let mut near = nearest(name, section.keys.iter().map(|key| key.name));
        if secret::names_secret(name) {
            self.secret(value.span(), &format!("`{name}`"));
            near = section.key("credentials").map(|key| key.name);
        } else {
            self.secrets_below(value);
        }
        let help = match (near, elsewhere(name, path)) {
            (Some(near), Some(home)) => format!("did you mean `{near}`? {home}"),
            (Some(near), None) => format!("did you mean `{near}`?"),
            (None, Some(home)) => home,
            (None, None) => {
                let names: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
                format!("keys here: {}", names.join(", "))
            }
        };
        let place = if path.is_empty() { "at the top of a job file".to_owned() } else { format!("of `[{path}]`") };
        let message = format!("`{}` is not a key {place}", found::cut(name).escape_debug());
        self.problems.push(Diagnostic::error("unknown-key", message).at(span).help(help));
    }

    /// Finds secrets in a value that no key accepts, so that they are not shown with it.
    fn secrets_below(&mut self, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::String(text) if secret::looks_secret(text) => {
                self.secret(value.span(), "this");
            }
            DeValue::Array(array) => array.iter().for_each(|element| self.secrets_below(element)),
            DeValue::Table(entries) => entries.values().for_each(|entry| self.secrets_below(entry)),
            _ => {}
        }
    }

    fn missing_keys(&mut self, section: &Section, table: &Table, path: &str) {
        if self.after_syntax_error {
            return;
        }
        for key in section.keys.iter().filter(|key| matches!(key.missing, Missing::Required)) {
            let empty = matches!(key.shape, Shape::Named(_))
                && table.entries.iter().any(|(name, item)| {
                    name == key.name && item.value.table().is_some_and(|table| table.entries.is_empty())
                });
            if table.has(key.name) && !empty {
                continue;
            }
            let problem = if let Shape::Named(below) = key.shape {
                let help = format!("add a table `[{}]` with at least `train = \"rows.parquet\"`", below.places[0]);
                Diagnostic::error("no-tasks", format!("the job has no {}", key.name)).help(help)
            } else if let Shape::Table(below) = key.shape {
                let required = below.keys.iter().find(|key| matches!(key.missing, Missing::Required));
                let line = required.map(|key| format!(" `{} = {}`", key.name, key.example)).unwrap_or_default();
                Diagnostic::error("missing-key", format!("`[{}]` is missing", join(path, key.name)))
                    .help(format!("add a table `[{}]` with{line}", join(path, key.name)))
            } else {
                Diagnostic::error("missing-key", format!("`{}` is missing in `[{path}]`", key.name))
                    .help(format!("add `{} = {}`", key.name, key.example))
            };
            self.problems.push(if path.is_empty() { problem } else { problem.at(table.key.clone()) });
        }
    }
}

/// Says where a key of this name belongs, the table nearest to `path` first.
fn elsewhere(name: &str, path: &str) -> Option<String> {
    let segments = |path: &'static str| path.split('.').filter(|segment| !segment.is_empty());
    let here: Vec<&str> = path.split('.').filter(|segment| !segment.is_empty()).collect();
    let mut best: Option<(usize, String)> = None;
    for section in TOP.all() {
        let Some(key) = section.key(name) else { continue };
        for place in section.places {
            let pairs = segments(place).zip(&here);
            let common = pairs.take_while(|(there, here)| there == *here || *there == "NAME").count();
            let home: Vec<&str> = here[..common].iter().copied().chain(segments(place).skip(common)).collect();
            let home = home.join(".");
            let text = match (home.as_str(), key.shape) {
                ("", _) => format!("`{name}` belongs at the top of the file, above the first table"),
                (home, Shape::Table(_)) => format!("`{name}` belongs in `[{home}]`, as `[{home}.{name}]`"),
                (home, _) => format!("`{name}` belongs in `[{home}]`"),
            };
            if best.as_ref().is_none_or(|(most, _)| common > *most) {
                best = Some((common, text));
            }
        }
    }
    best.map(|(_, text)| text)
}

fn shape_takes_text(shape: &Shape) -> bool {
    matches!(shape, Shape::Text | Shape::Name | Shape::Place(_) | Shape::Adapter)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
