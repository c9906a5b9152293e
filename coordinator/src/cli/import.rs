//! `graftwork import`: tables and documents into Parquet with fixed splits.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::anyhow;
use graftwork_dataset::import::{
    self, ColumnMap, Dedupe, Encoding, Format, ImportReport, LabelKind, LabelOptions, LabelRange, Options, Recipes,
    SplitOptions,
};

use super::{DONE, Failure, plan::Output, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Inputs in order: paths or globs, or ARCHIVE!MEMBER with a glob as member; .gz, .bz2 and .zst are unpacked.
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    inputs: Vec<String>,
    /// The folder to write; it must not exist, or hold an earlier import.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// A file of named imports.
    #[arg(long, value_name = "FILE", requires_all = ["name", "from"])]
    recipe: Option<PathBuf>,
    /// The import of the recipe file.
    #[arg(long, requires = "recipe")]
    name: Option<String>,
    /// The package of the recipe: its wheel, a folder with the wheel, or a folder into which it was unpacked.
    #[arg(long, value_name = "PATH", requires = "recipe")]
    from: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Layout")]
    layout: Layout,
    #[command(flatten, next_help_heading = "Columns")]
    columns: Columns,
    #[command(flatten, next_help_heading = "Labels")]
    labels: Labels,
    #[command(flatten, next_help_heading = "Rows")]
    rows: Rows,
    /// How the counts are printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Layout {
    /// How inputs are laid out; by default told by their ending.
    #[arg(long, value_parser = named::<Format>, value_name = "csv|tsv|json_lines|documents")]
    format: Option<Format>,
    /// Character between fields; `,` in CSV, tab in TSV.
    #[arg(long)]
    delimiter: Option<char>,
    /// Character around fields; `"` in CSV, none in TSV; an empty text means none.
    #[arg(long)]
    quote: Option<String>,
    /// Name of a field, in order, for tables without a header line; may be given again.
    #[arg(long = "field", value_name = "NAME")]
    fields_named: Vec<String>,
    /// Whether the first line names the fields; by default so unless --field is given.
    #[arg(long, value_name = "true|false")]
    header: Option<bool>,
    /// Fields of a line at most; the last one takes the rest of the line.
    #[arg(long, value_name = "NUMBER")]
    max_fields: Option<usize>,
    /// Lines to leave out in front of each input.
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    skip: u64,
    /// Only the last so many records of each input.
    #[arg(long, value_name = "RECORDS")]
    last: Option<u64>,
    /// How bytes become text.
    #[arg(long, value_parser = named::<Encoding>, value_name = "utf-8|utf-8-or-latin-1", default_value = "utf-8")]
    encoding: Encoding,
}

#[derive(Debug, clap::Args)]
struct Columns {
    /// Field with the text.
    #[arg(long, value_name = "FIELD", default_value = "text")]
    text: String,
    /// Field with the second text of a pair.
    #[arg(long, value_name = "FIELD")]
    text_b: Option<String>,
    /// Field with the label.
    #[arg(long, value_name = "FIELD", default_value = "label")]
    label: String,
    /// Field whose equal values stay in one split.
    #[arg(long, value_name = "FIELD")]
    group: Option<String>,
    /// The group is what stands in front of this text.
    #[arg(long, value_name = "TEXT", requires = "group")]
    group_until: Option<String>,
    /// One more field to keep; may be given again.
    #[arg(long, value_name = "FIELD")]
    extra: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Labels {
    /// What a label is.
    #[arg(long, value_parser = named::<LabelKind>, value_name = "class|number", default_value = "class")]
    label_kind: LabelKind,
    /// The label is what stands in front of this text.
    #[arg(long, value_name = "TEXT")]
    label_until: Option<String>,
    /// A label whose rows are left out; may be given again.
    #[arg(long, value_name = "LABEL")]
    drop_label: Vec<String>,
    /// Dictionary from labels to class names; may be given again.
    #[arg(long, value_name = "LABEL=CLASS", value_parser = pair)]
    label_name: Vec<(String, String)>,
    /// Numbers below a bound are a class, tried in order; an empty bound takes all, an empty class leaves them out.
    #[arg(long, value_name = "BELOW=CLASS", value_parser = range)]
    label_range: Vec<LabelRange>,
    /// A class name, in the order of ids; may be given again.
    #[arg(long, value_name = "CLASS")]
    class: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Rows {
    /// Which rows count as the same; of those the first is kept.
    #[arg(long, value_parser = named::<Dedupe>, value_name = "off|exact|words", default_value = "off")]
    dedupe: Dedupe,
    /// Store the rows of each split in an order drawn with this seed; for inputs sorted by class or time.
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    /// Share of rows, or of groups, for validation.
    #[arg(long, value_name = "SHARE", default_value_t = SplitOptions::default().validation)]
    validation: f64,
    /// Share of rows, or of groups, for test.
    #[arg(long, value_name = "SHARE", default_value_t = SplitOptions::default().test)]
    test: f64,
    /// Seed of the draw.
    #[arg(long, default_value_t = SplitOptions::default().seed)]
    seed: u64,
    /// A field that names each row's split; shares are not used then.
    #[arg(long, value_name = "FIELD")]
    split_by: Option<String>,
}

/// A value by the name that recipe files use for it.
fn named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| error.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (label, class) = text.split_once('=').ok_or("write LABEL=CLASS")?;
    Ok((label.to_owned(), class.to_owned()))
}

fn range(text: &str) -> Result<LabelRange, String> {
    let (below, class) = text.split_once('=').ok_or("write BELOW=CLASS")?;
    let below =
        if below.is_empty() { None } else { Some(below.parse().map_err(|_| format!("{below:?} is not a number"))?) };
    Ok(LabelRange { below, class: (!class.is_empty()).then(|| class.to_owned()) })
}

pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let output = arguments.output;
    let report = match (&arguments.recipe, &arguments.name, &arguments.from) {
        (Some(recipe), Some(name), Some(from)) => {
            let recipes = Recipes::read(recipe).map_err(Failure::input)?;
            import::run_recipe(&recipes, name, from, &arguments.to)
        }
        (Some(_), _, _) => return Err(Failure::input(anyhow!("--recipe needs --name and --from"))),
        _ => import::run(&options(arguments)),
    };
    let report = report.map_err(Failure::input)?;
    if output == Output::Json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"));
    } else {
        print(&show(&report));
    }
    Ok(DONE)
}

fn options(arguments: Arguments) -> Options {
    let Arguments { inputs, to, layout, columns, labels, rows, .. } = arguments;
    Options {
        inputs,
        to,
        format: layout.format,
        delimiter: layout.delimiter,
        quote: layout.quote,
        names: layout.fields_named,
        header: layout.header,
        fields: layout.max_fields,
        skip: layout.skip,
        last: layout.last,
        encoding: layout.encoding,
        columns: ColumnMap {
            text: columns.text,
            text_b: columns.text_b,
            label: columns.label,
            group: columns.group,
            group_until: columns.group_until,
            extra: columns.extra,
        },
        label: LabelOptions {
            kind: labels.label_kind,
            until: labels.label_until,
            drop: labels.drop_label,
            names: labels.label_name.into_iter().collect::<BTreeMap<_, _>>(),
            ranges: labels.label_range,
            order: labels.class,
        },
        dedupe: rows.dedupe,
        shuffle: rows.shuffle,
        split: SplitOptions { validation: rows.validation, test: rows.test, seed: rows.seed, column: rows.split_by },
    }
}

fn show(report: &ImportReport) -> String {
    let mut text = format!("{} records", report.records);
    for (count, why) in [
        (report.dropped_empty, "without text"),
        (report.dropped_labels, "with a dropped label"),
        (report.duplicates, "repeated"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} left out {why}"));
        }
    }
    text.push_str(if report.unchanged { " (this import was there already)\n" } else { "\n" });
    for (split, part) in &report.splits {
        let labels: Vec<String> = part.by_label.iter().map(|(label, rows)| format!("{label} {rows}")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!(": {}", labels.join(", ")) };
        text.push_str(&format!("{split:<10} {:>8} rows, {:.1} words each{labels}\n", part.rows, part.mean_words()));
    }
    text
}
