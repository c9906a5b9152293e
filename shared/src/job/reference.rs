//! The reference of the job file in Markdown, generated from the table of keys.

use std::fmt::Write as _;

use serde_json::Value;

use super::keys::{ADAPTER, Key, Missing, Section, Shape, TOP};
use crate::adapter::AdapterConfig;

/// Presets under their present names, in the order of the reference's table.
const METHODS: [&str; 5] = ["seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "lora"];

const INTRODUCTION: &str = r#"# The job file

A job file is TOML and strict: an unknown key, a value out of range or a name that nothing bears is an error, and all
problems of a file come at once, each with line and column. Relative local paths start at the folder of the job file.
Files that say the same job have the same digest, whatever their order, comments and spelled-out defaults; keys marked
with ° do not enter it.

The shortest job there is:

```toml
base_model.location = "models/all-minilm-l6-v2"

[tasks.spam]
train = "data/spam.parquet"
split = { validation = 0.1, test = 0.1 }
```

[tour.toml](tour.toml) shows every feature. `graftwork schema` prints a JSON schema for editors, which
[schema.json](schema.json) holds too: with `#:schema schema.json` as the first line of a job file beside it, editors
with a TOML language server complete keys and show their meaning.

This page and the schema are generated from the table of keys in `shared/src/job/keys`; a test keeps them equal to it
(`GRAFTWORK_WRITE_REFERENCE=1 cargo test --release -p graftwork-shared reference` writes them anew).
"#;

/// The reference of the job file in Markdown; `jobs/REFERENCE.md` holds it.
pub fn reference_markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    for section in TOP.all() {
        write_section(&mut page, section).expect("writing to a text cannot fail");
    }
    page
}

fn write_section(page: &mut String, section: &Section) -> std::fmt::Result {
    let titles: Vec<String> = section.places.iter().map(|place| format!("`[{place}]`")).collect();
    let title = if section.places == [""] { "Top of the file".to_owned() } else { titles.join(", ") };
    writeln!(page, "\n## {title}\n\n{}\n", section.about)?;
    writeln!(page, "| key | value | without it | meaning |\n|---|---|---|---|")?;
    for key in section.keys {
        let mark = if key.digested { "" } else { "°" };
        let value = cell(&key.shape.allowed());
        writeln!(page, "| `{}`{mark} | {value} | {} | {} |", key.name, cell(&absent(key)), cell(key.about))?;
    }
    for (first, second) in section.exclusive {
        writeln!(page, "\n`{first}` and `{second}` exclude each other.")?;
    }
    if section.name == ADAPTER.name {
        write_presets(page, section)?;
    }
    Ok(())
}

fn absent(key: &Key) -> String {
    match key.missing {
        Missing::Required => "required".to_owned(),
        Missing::Value(text) => format!("`{text}`"),
        Missing::Means(words) => words.to_owned(),
        Missing::Preset if matches!(key.shape, Shape::List(..)) && key.name == "leave_out" => "`[]`".to_owned(),
        Missing::Preset => "see presets".to_owned(),
    }
}

/// What each method's preset says about each option.
fn write_presets(page: &mut String, section: &Section) -> std::fmt::Result {
    writeln!(page, "\nPresets:\n\n| option | {} |", METHODS.map(|method| format!("`{method}`")).join(" | "))?;
    writeln!(page, "|---|{}", "---|".repeat(METHODS.len()))?;
    let presets: Vec<Value> = METHODS
        .iter()
        .map(|method| serde_json::to_value(AdapterConfig::preset(method)).expect("options can be written as JSON"))
        .collect();
    for key in section.keys.iter().filter(|key| matches!(key.missing, Missing::Preset)) {
        let values =
            presets.iter().map(|preset| preset.get(key.name).map_or("–".to_owned(), |value| format!("`{value}`")));
        writeln!(page, "| `{}` | {} |", key.name, values.collect::<Vec<_>>().join(" | "))?;
    }
    Ok(())
}

/// A text as one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
