//! The table of keys agrees with the parser, the schema and the reference.

use super::{FOLDER, codes, job, parsed, shown};
use crate::{
    adapter::AdapterConfig,
    job::{
        json_schema,
        keys::{BOTTLENECK, Key, LORA, Missing, Section, Shape, TOP},
        parse, reference_markdown,
    },
};

/// A key of the table with a whole job around a value for it.
pub(super) struct Case {
    pub(super) path: String,
    pub(super) key: &'static Key,
    /// Lines that the value needs beside it in its own table.
    beside: &'static str,
    place: &'static str,
}

impl Case {
    /// A job with this value for the key, or with what every job here says about it.
    pub(super) fn job(&self, value: Option<&str>) -> String {
        let line = value.map(|value| format!("{} = {value}\n", self.key.name)).unwrap_or_default();
        let mut text = String::new();
        let mut placed = false;
        for (table, lines) in [
            ("", ""),
            ("base_model", "location = \"model\"\n"),
            ("tasks.spam", "train = \"a.parquet\"\nvalidation = \"b.parquet\"\n"),
            ("tasks.tone", "train = \"c.parquet\"\nvalidation = \"d.parquet\"\n"),
            ("fusions.two", "adapters = [\"spam\", \"tone\"]\ntask = \"spam\"\n"),
        ] {
            if !table.is_empty() {
                text.extend(["[", table, "]\n"]);
            }
            let here = table == self.place;
            let below_sweep = self.path.contains("sweep.sample.") || self.path.contains("sweep.halving.");
            let split = table == "tasks.spam" && (self.path.contains("split.") || (here && self.key.name == "split"));
            for base in lines.lines() {
                let replaced = here && value.is_some() && base.starts_with(&format!("{} =", self.key.name));
                let beside_split = split && base.starts_with("validation");
                if !replaced && !beside_split {
                    text.extend([base, "\n"]);
                }
            }
            if table == "tasks.spam" && below_sweep {
                text.push_str("sweep.seed = [1, 2, 3, 4, 5, 6, 7, 8]\n");
            }
            if split && here && value.is_none() {
                text.push_str("split = {}\n");
            }
            if here {
                text.extend([self.beside, &line]);
                placed = true;
            }
        }
        if self.key.name == "precision" {
            text.push_str("[resources]\ndevice = \"cuda\"\n");
        }
        if !placed {
            text.extend(["[", self.place, "]\n", self.beside, &line]);
        }
        text
    }
}

/// Every key of the table in every place where it may stand, apart from tables that other cases make.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for section in TOP.all() {
        for (place, key) in section.places.iter().flat_map(|place| section.keys.iter().map(move |key| (place, key))) {
            // Each key of a table is a case of its own, and so is each task.
            if !matches!(key.shape, Shape::Table(_) | Shape::Named(_)) {
                cases.push(case(section, place, key));
            }
        }
    }
    assert!(cases.len() > 150, "{}", cases.len());
    cases
}

fn case(section: &'static Section, place: &'static str, key: &'static Key) -> Case {
    let beside = match (section.name, key.name) {
        ("adapter", name) if LORA.contains(&name) => "method = \"lora\"\nintermediate_lora = true\n",
        ("adapter", "output_adapter") => "mh_adapter = true\n",
        ("early_stopping", "min_delta") => "patience = 2\n",
        ("split", "test") => "seed = 3\n",
        ("sweep", "r" | "alpha") => "seed = [1, 2]\nmethod = [\"seq_bn\", \"lora\"]\n",
        ("sweep", "seed") => "learning_rate = [1e-3, 2e-3]\n",
        ("sweep", _) => "seed = [1, 2]\n",
        ("sample", "seed") => "trials = 2\n",
        _ => "",
    };
    let beside =
        if section.name == "adapter" && key.name == "intermediate_lora" { "method = \"lora\"\n" } else { beside };
    let place = place.replace("fusions.NAME", "fusions.two").replace("NAME", "spam");
    Case { path: format!("{place}.{}", key.name), key, beside, place: place.leak() }
}

/// The value that stands for a missing key, where there is one.
pub(super) fn default_of(key: &Key) -> Option<String> {
    match key.missing {
        Missing::Required | Missing::Means(_) => None,
        Missing::Value(text) => Some(text.to_owned()),
        Missing::Preset => {
            let method = if LORA.contains(&key.name) { "lora" } else { "seq_bn" };
            let preset = serde_json::to_value(AdapterConfig::preset(method)).unwrap();
            Some(preset[key.name].to_string())
        }
    }
}

#[test]
fn every_key_is_accepted_with_its_example_and_with_its_default() {
    for case in cases() {
        let (path, key) = (&case.path, case.key);
        job(&case.job(Some(key.example)));
        if let Some(default) = default_of(key) {
            let text = case.job(Some(&default));
            assert_eq!(job(&text).digest(), job(&case.job(None)).digest(), "{path} = {default}");
        }
    }
}

#[test]
fn every_key_refuses_a_value_of_a_wrong_type() {
    for case in cases() {
        for wrong in ["1979-05-27", "[[1], [2], [3], [4]]", "[{ a = 1 }]"] {
            let text = case.job(Some(wrong));
            let parsed = parsed(&text);
            let problem = parsed.diagnostics.iter().find(|problem| {
                ["wrong-type", "out-of-range", "secret-in-file"].contains(&problem.code.as_str())
                    && problem.span.is_some()
            });
            assert!(problem.is_some() && parsed.job.is_none(), "{} = {wrong}\n{}", case.path, shown(&text));
        }
    }
}

#[test]
fn numbers_just_outside_their_bounds_are_refused() {
    let outside = |shape: &Shape| -> Vec<String> {
        match shape {
            Shape::Whole(least, most) => [least.checked_sub(1), most.checked_add(1)]
                .into_iter()
                .flatten()
                .map(|number| number.to_string())
                .collect(),
            Shape::Number(bounds) => {
                let ends = [
                    if bounds.with_least { bounds.least.next_down() } else { bounds.least },
                    if bounds.with_most { bounds.most.next_up() } else { bounds.most },
                ];
                ends.map(|number| format!("{number:?}"))
                    .into_iter()
                    .chain(["nan".to_owned(), "inf".to_owned()])
                    .collect()
            }
            _ => Vec::new(),
        }
    };
    let mut tried = 0;
    for case in cases() {
        let shapes = if let Shape::Either(shapes) = case.key.shape { shapes } else { &[case.key.shape] };
        for number in shapes.iter().flat_map(outside) {
            let text = case.job(Some(&number));
            assert!(codes(&text).contains(&"out-of-range".to_owned()), "{} = {number}\n{}", case.path, shown(&text));
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn every_word_of_every_choice_is_understood() {
    for case in cases() {
        let shapes = if let Shape::Either(shapes) = case.key.shape { shapes } else { &[case.key.shape] };
        let (name, path) = (case.key.name, &case.path);
        let all = |shape: &Shape| if let Shape::Choice(words) = shape { words.to_vec() } else { Vec::new() };
        let digests: Vec<_> = shapes
            .iter()
            .flat_map(all)
            .filter(|word| !(name == "init_weights" && *word == "lora"))
            .filter(|word| !(name == "metric" && ["pearson", "spearman"].contains(word)))
            .map(|word| (word, job(&case.job(Some(&format!("{word:?}"))))))
            .collect();
        // Words that mean the same are the older method names alone.
        if name != "method" && case.key.digested {
            for (index, (word, job)) in digests.iter().enumerate() {
                let twin = digests[..index].iter().find(|(_, other)| other.digest() == job.digest());
                assert!(twin.is_none(), "{path}: {word} reads as {:?}", twin.map(|(word, _)| word));
            }
        }
    }
}

#[test]
fn options_of_both_families_are_in_the_table() {
    let adapter = TOP.all().into_iter().find(|section| section.name == "adapter").unwrap();
    for (method, family) in [("seq_bn", BOTTLENECK), ("lora", LORA)] {
        let preset = serde_json::to_value(AdapterConfig::preset(method)).unwrap();
        for option in preset.as_object().unwrap().keys().filter(|option| *option != "architecture") {
            assert!(adapter.key(option).is_some(), "{option}");
            let shared = ["init_weights", "use_gating", "leave_out", "dropout"].contains(&option.as_str());
            assert_eq!(family.contains(&option.as_str()), !shared, "{option}");
        }
        assert!(family.iter().all(|option| preset.get(option).is_some()));
    }
}

#[test]
fn the_schema_knows_every_key_and_allows_no_other() {
    let schema = json_schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    for section in TOP.all() {
        let table = if section.name == "job" { &schema } else { &schema["$defs"][section.name] };
        assert_eq!(table["additionalProperties"], false, "{}", section.name);
        for key in section.keys {
            let property = &table["properties"][key.name];
            assert!(property["description"].as_str().is_some_and(|text| text.starts_with(key.about)), "{}", key.name);
            assert_eq!(property.get("default").is_some(), matches!(key.missing, Missing::Value(_)), "{}", key.name);
        }
    }
    insta::assert_json_snapshot!(schema["$defs"]["training"]);
}

/// Compares a generated file of the repository with the table of keys, or writes it when asked to.
fn is_generated(name: &str, content: &str) {
    let path = format!("{}/../jobs/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("GRAFTWORK_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, content).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == content,
        "jobs/{name} differs from the table of keys; set GRAFTWORK_WRITE_REFERENCE to write it"
    );
}

#[test]
fn the_reference_and_the_schema_in_the_repository_are_the_table_of_keys() {
    is_generated("REFERENCE.md", &reference_markdown());
    is_generated("schema.json", &(serde_json::to_string_pretty(&json_schema()).unwrap() + "\n"));
}

#[test]
fn every_job_in_the_repository_has_no_problem() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../jobs");
    let mut jobs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = if path.extension().is_some_and(|ending| ending == "toml") {
            std::fs::read_to_string(&path).unwrap()
        } else {
            continue;
        };
        if text.contains("[base_model]") {
            assert!(parsed(&text).diagnostics.is_empty(), "{}: {}", path.display(), shown(&text));
            jobs += 1;
        }
    }
    assert!(jobs >= 2, "{jobs}");
}

#[test]
fn the_tour_shows_every_table_and_has_no_problem() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../jobs/tour.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let parsed = parse(&text, std::path::Path::new(FOLDER));
    assert!(parsed.diagnostics.is_empty(), "{}", shown(&text));
    assert!(parsed.job.is_some());
    for section in TOP.all() {
        for key in section.keys {
            let shows = text.contains(&format!("{} = ", key.name)) || text.contains(&format!(".{}]", key.name));
            let table = text.contains(&format!("[{}", key.name)) || text.contains(&format!(".{}.", key.name));
            assert!(shows || table, "the tour does not show `{}` of {}", key.name, section.name);
        }
    }
}
