//! What is imported can be opened and read, says what it left out, and gives equal bytes every time.

use std::{fs, io::Write as _, path::Path};

use graftwork_shared::{data::Split, head::HeadOutput};

use super::{Folder, columns, request};
use crate::{
    Label, Order, ReadRequest,
    import::{self, ColumnMap, Dedupe, Encoding, Format, ImportError, LabelKind, LabelOptions, Options, SplitOptions},
};

fn no_split() -> SplitOptions {
    SplitOptions { validation: 0.0, test: 0.0, ..SplitOptions::default() }
}

impl Folder {
    fn put(&self, name: &str, bytes: &[u8]) -> String {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    fn options(&self, inputs: &[String]) -> Options {
        Options { inputs: inputs.to_vec(), to: self.path("out"), split: no_split(), ..Options::default() }
    }

    /// Texts and class names of the written training rows.
    fn imported(&self) -> Vec<(String, String)> {
        let labels = self.open(&["out/train.parquet"]).unwrap()[0].labels.clone().unwrap();
        let output = HeadOutput::Classification { labels: labels.clone() };
        let request = ReadRequest { output, ..request(self.manifest(&["out/train.parquet"]), Order::Sequential) };
        let name = |label| match label {
            Label::Class(id) => labels[id as usize].clone(),
            Label::Value(value) => value.to_string(),
        };
        self.rows(request).unwrap().into_iter().map(|mut row| (row.texts.remove(0), name(row.label))).collect()
    }
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(text, label)| ((*text).to_owned(), (*label).to_owned())).collect()
}

#[test]
fn csv_with_quotes_and_a_dictionary_keeps_its_texts() {
    let folder = Folder::new();
    let input = folder.put("a.csv", b",spam,text\n0,0,\"one, two\nthree \"\"four\"\"\"\n1,1, win now \n2,0,\n");
    let label = LabelOptions {
        names: [("0".to_owned(), "ham".to_owned()), ("1".to_owned(), "spam".to_owned())].into(),
        order: vec!["spam".to_owned(), "ham".to_owned()],
        ..LabelOptions::default()
    };
    let map = ColumnMap { label: "spam".to_owned(), ..ColumnMap::default() };
    let options = Options { label, columns: map, ..folder.options(&[input]) };
    let report = import::run(&options).unwrap();
    assert_eq!((report.records, report.dropped_empty, report.rows(Split::Train)), (3, 1, 2));
    assert_eq!(report.labels, ["spam", "ham"]);
    assert_eq!(folder.imported(), pairs(&[("one, two\nthree \"four\"", "ham"), ("win now", "spam")]));
}

#[test]
fn every_compression_and_an_archive_give_the_same_rows() {
    let plain = b"text\tlabel\nhe said \"no\tneg\nyes\tpos\n";
    let wanted = pairs(&[("he said \"no", "neg"), ("yes", "pos")]);
    let folder = Folder::new();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(plain).unwrap();
    let mut bz2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz2.write_all(plain).unwrap();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file("pkg/data/a_Truth.tsv", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(plain).unwrap();
    let zst = zstd::encode_all(&plain[..], 3).unwrap();
    let wheel = folder.put("p.whl", &archive.finish().unwrap().into_inner());
    let inputs = [
        folder.put("a.tsv", plain),
        folder.put("b.tsv.gz", &gz.finish().unwrap()),
        folder.put("c.tsv.bz2", &bz2.finish().unwrap()),
        folder.put("d.tsv.zst", &zst),
        format!("{wheel}!pkg/*/*_Truth.tsv"),
    ];
    for input in inputs {
        import::run(&folder.options(std::slice::from_ref(&input))).unwrap();
        assert_eq!(folder.imported(), wanted, "{input}");
    }
}

#[test]
fn json_lines_take_texts_numbers_and_booleans() {
    let folder = Folder::new();
    let input =
        folder.put("a.jsonl", b"{\"text\": \"x\", \"label\": 1}\n\n{\"label\": true, \"text\": \"y\", \"z\": []}\n");
    import::run(&folder.options(&[input])).unwrap();
    assert_eq!(folder.imported(), pairs(&[("x", "1"), ("y", "true")]));
}

#[test]
fn the_last_lines_of_a_file_can_be_taken_with_the_rest_of_a_line_as_text() {
    let folder = Folder::new();
    let input = folder.put("q.txt", b"OLD:x dropped\nDESC:manner How did it go ?\nNUM:count How many ?");
    let options = Options {
        format: Some(Format::Csv),
        delimiter: Some(' '),
        quote: Some(String::new()),
        fields: Some(2),
        names: vec!["label".to_owned(), "text".to_owned()],
        last: Some(2),
        label: LabelOptions { until: Some(":".to_owned()), ..LabelOptions::default() },
        ..folder.options(&[input])
    };
    import::run(&options).unwrap();
    assert_eq!(folder.imported(), pairs(&[("How did it go ?", "DESC"), ("How many ?", "NUM")]));
}

#[test]
fn documents_have_their_folder_as_label() {
    let folder = Folder::new();
    folder.put("docs/sport/1.txt", b"a\n\nb\n");
    folder.put("docs/tech/1.txt", b"caf\xe9");
    let options = Options {
        format: Some(Format::Documents),
        encoding: Encoding::Utf8OrLatin1,
        columns: ColumnMap { label: "folder".to_owned(), extra: vec!["source".to_owned()], ..ColumnMap::default() },
        ..folder.options(&[folder.text("docs/*/*.txt")])
    };
    import::run(&options).unwrap();
    assert_eq!(folder.imported(), pairs(&[("a\n\nb", "sport"), ("café", "tech")]));
    let strict = Options { encoding: Encoding::Utf8, ..options };
    let error = import::run(&strict).unwrap_err();
    assert!(matches!(&error, ImportError::NotUtf8 { line: 1, .. }), "{error}");
}

#[test]
fn numbers_are_stored_as_floats() {
    let folder = Folder::new();
    let input = folder.put("a.tsv", b"text\tlabel\nx\t-1.5\ny\t2\n");
    let label = LabelOptions { kind: LabelKind::Number, ..LabelOptions::default() };
    let report = import::run(&Options { label: label.clone(), ..folder.options(&[input]) }).unwrap();
    assert!((report.splits[&Split::Train].sum - 0.5).abs() < 1e-12);
    let files = folder.open(&["out/train.parquet"]).unwrap();
    assert_eq!(files[0].labels, None);
    let request = request(folder.manifest(&["out/train.parquet"]), Order::Sequential);
    let rows = folder.rows(ReadRequest { output: HeadOutput::Regression, ..request }).unwrap();
    assert_eq!((rows[0].label, rows[1].label), (Label::Value(-1.5), Label::Value(2.0)));
    let input = folder.put("b.tsv", b"text\tlabel\nx\thigh\n");
    let error = import::run(&Options { label, ..folder.options(&[input]) }).unwrap_err().to_string();
    assert!(error.contains("b.tsv line 2") && error.contains("finite number"), "{error}");
}

fn many(rows: usize) -> Vec<u8> {
    let mut text = String::from("text,label,film\n");
    for row in 0..rows {
        text.push_str(&format!("some words {row},{},film {}\n", if row % 3 == 0 { "good" } else { "bad" }, row / 10));
    }
    text.into_bytes()
}

#[test]
fn groups_stay_together_and_bytes_are_repeatable() {
    let folder = Folder::new();
    let input = folder.put("a.csv", &many(2000));
    let columns_of = ColumnMap { group: Some("film".to_owned()), ..ColumnMap::default() };
    let split = SplitOptions { validation: 0.1, test: 0.2, ..SplitOptions::default() };
    let options = Options { columns: columns_of, split, ..folder.options(&[input]) };
    let report = import::run(&options).unwrap();
    assert!(!report.unchanged);
    let mut seen = std::collections::BTreeMap::new();
    for name in ["train", "validation", "test"] {
        let file = format!("out/{name}.parquet");
        let by_group = graftwork_shared::data::Columns { label: "group".to_owned(), ..columns() };
        let manifest = folder.manifest(&[&file]);
        let access = crate::Access::anonymous();
        for group in folder.runtime.block_on(crate::find_labels(&manifest, &by_group, &access)).unwrap() {
            assert_eq!(seen.insert(group, name), None, "a group lies in two splits");
        }
    }
    assert_eq!(seen.len(), 200);
    assert!(import::run(&options).unwrap().unchanged, "the same import again leaves the folder alone");
    let other = import::run(&Options { to: folder.path("again"), ..options.clone() }).unwrap();
    assert_eq!(other.files, report.files);
    for name in ["train.parquet", "test.parquet", "import.json"] {
        assert_eq!(
            fs::read(folder.path("out").join(name)).unwrap(),
            fs::read(folder.path("again").join(name)).unwrap()
        );
    }
    fs::write(folder.path("out/test.parquet"), b"broken").unwrap();
    assert!(!import::run(&options).unwrap().unchanged, "a damaged file is written again");
}

#[test]
fn a_field_can_name_the_split_and_duplicates_are_counted() {
    let folder = Folder::new();
    let input = folder.put("a.csv", b"text,label,part\na b!,x,train\nA B http://t.co/1,y,test\nc,x,dev\nd,y,test\n");
    let split = SplitOptions { column: Some("part".to_owned()), ..SplitOptions::default() };
    let options = Options { split, dedupe: Dedupe::Words, ..folder.options(&[input]) };
    let report = import::run(&options).unwrap();
    assert_eq!(report.duplicates, 1);
    assert_eq!([Split::Train, Split::Validation, Split::Test].map(|split| report.rows(split)), [1, 1, 1]);
    let input = folder.put("b.csv", b"text,label,part\na,x,trian\n");
    let error = import::run(&Options { inputs: vec![input], ..options }).unwrap_err().to_string();
    assert!(error.contains("b.csv line 2") && error.contains("\"trian\"") && error.contains("\"train\""), "{error}");
}

#[test]
fn malformed_input_names_file_and_line_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let cases: [(&str, &[u8], &str); 9] = [
        ("a.csv", b"text,label\nx,1\ny\n", "a.csv line 3 is malformed: it has 1 fields"),
        ("b.jsonl", b"{\"text\":\"x\",\"label\":1}\n{\"text\":", "b.jsonl line 2 is malformed"),
        ("c.jsonl", b"{\"text\":\"x\",\"label\":[1]}", "field \"label\" is a list"),
        ("d.csv", b"text,label\nx,1\n\xff,2\n", "d.csv line 3 is not UTF-8"),
        (
            "e.csv",
            b"text,lable\nx,1\n",
            "no field \"label\"; it has \"text\", \"lable\", \"source\", \"folder\"; did you mean \"lable\"?",
        ),
        ("f.bin", b"x", "cannot tell the format"),
        ("g.csv", b"text,label\r\nx,1\r\ny\r\n", "g.csv line 3 is malformed: it has 1 fields"),
        ("h.csv", b"text,label\r\nx,1\r\n\xff,2\r\n", "h.csv line 3 is not UTF-8"),
        ("i.jsonl", b"{\"text\":\"x\",\"label\":1}\n{\"text\":\"y\"}\n", "i.jsonl line 2 has no field \"label\""),
    ];
    for (name, bytes, wanted) in cases {
        let input = folder.put(name, bytes);
        let error = import::run(&folder.options(&[input])).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} lacks {wanted:?}");
        assert!(!folder.path("out").exists());
    }
    let left =
        fs::read_dir(folder.path(".")).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().contains("part"));
    assert_eq!(left.count(), 0, "an aborted import leaves a folder behind");
}

#[test]
fn options_that_cannot_work_are_refused() {
    let folder = Folder::new();
    let input = folder.put("a.csv", b"text,label\nx,a\ny,b\n");
    let fine = folder.options(&[input]);
    let order = |names: &[&str]| LabelOptions {
        order: names.iter().map(ToString::to_string).collect(),
        ..LabelOptions::default()
    };
    let cases = [
        (
            Options { split: SplitOptions { validation: 0.6, test: 0.5, ..no_split() }, ..fine.clone() },
            "both together below 1",
        ),
        (Options { inputs: vec![folder.text("none.csv")], ..fine.clone() }, "matches nothing"),
        (Options { inputs: Vec::new(), ..fine.clone() }, "no input is named"),
        (Options { label: order(&["a"]), ..fine.clone() }, "the classes are \"a\""),
        (Options { label: order(&["a", "b", "c"]), ..fine.clone() }, "no row has class \"c\""),
        (
            Options { split: SplitOptions { test: 0.01, ..no_split() }, ..fine.clone() },
            "test split holds none of 2 rows",
        ),
        (Options { fields: Some(2), ..fine.clone() }, "needs an empty `quote`"),
    ];
    for (options, wanted) in cases {
        let error = import::run(&options).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} lacks {wanted:?}");
    }
    folder.put("out/thesis.txt", b"precious");
    let error = import::run(&fine).unwrap_err();
    assert!(matches!(error, ImportError::FolderInUse { .. }), "{error}");
    assert_eq!(fs::read(folder.path("out/thesis.txt")).unwrap(), b"precious");
}

#[test]
fn a_recipe_file_runs_by_name_and_is_strict() {
    let folder = Folder::new();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file("pkg/a.csv", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(b"text,label\nx,a\ny,b\n").unwrap();
    folder.put("wheels/my_data-1.0-py3-none-any.whl", &archive.finish().unwrap().into_inner());
    let text = "[[import]]\nname = \"letters\"\nabout = \"x\"\npackage = \"my-data==1.0\"\nmembers = [\"pkg/a.csv\"]\n\
                options.split = { validation = 0, test = 0 }\n";
    let file = folder.put("data.toml", text.replace("= 0", "= 0.0").as_bytes());
    let recipes = import::Recipes::read(Path::new(&file)).unwrap();
    let run = |name: &str| import::run_recipe(&recipes, name, &folder.path("wheels"), &folder.path("out"));
    assert_eq!(run("letters").unwrap().rows(Split::Train), 2);
    assert!(run("leters").unwrap_err().to_string().contains("did you mean \"letters\"?"));
    let file = folder
        .put("bad.toml", b"[[import]]\nname = \"x\"\nabout = \"\"\npackage = \"\"\nmembers = []\noptions.tset = 1\n");
    let error = import::Recipes::read(Path::new(&file)).unwrap_err().to_string();
    assert!(error.contains("bad.toml") && error.contains("tset"), "{error}");
}

#[test]
fn many_documents_are_reported_as_one_entry_that_covers_them_all() {
    let folder = Folder::new();
    for number in 0..30 {
        folder.put(&format!("docs/a/{number:02}.txt"), format!("text {number}").as_bytes());
    }
    let map = ColumnMap { label: "folder".to_owned(), ..ColumnMap::default() };
    let input = folder.text("docs/*/*.txt");
    let options = Options { format: Some(Format::Documents), columns: map, ..folder.options(&[input]) };
    let report = import::run(&options).unwrap();
    assert_eq!((report.sources.len(), report.sources[0].name.as_str()), (1, "30 files, 00.txt to 29.txt"));
    assert!(import::run(&options).unwrap().unchanged);
    folder.put("docs/a/07.txt", b"another text");
    assert!(!import::run(&options).unwrap().unchanged, "a changed document among many is noticed");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..proptest::prelude::ProptestConfig::default() })]

    /// Whatever bytes a table holds, importing gives rows or an error, and every record is accounted for.
    #[test]
    fn no_bytes_make_an_import_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), kind in 0_usize..4) {
        let folder = Folder::new();
        let head: &[u8] = b"text,label\nx,1\n";
        let name = ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz"][kind];
        let input = folder.put(name, &[head, &bytes].concat());
        let encoding = Encoding::Utf8OrLatin1;
        if let Ok(report) = import::run(&Options { encoding, ..folder.options(&[input]) }) {
            let left_out = report.dropped_empty + report.dropped_labels + report.duplicates;
            proptest::prop_assert_eq!(report.records, report.rows(Split::Train) + left_out);
        }
    }
}

#[test]
fn a_drawn_order_mixes_rows_sorted_by_class_and_loses_none() {
    let folder = Folder::new();
    let lines: String =
        (0..200).map(|row| format!("text {row},{}\n", if row < 100 { "first" } else { "second" })).collect();
    let input = folder.put("sorted.csv", format!("text,label\n{lines}").as_bytes());
    let sorted = {
        import::run(&folder.options(std::slice::from_ref(&input))).unwrap();
        folder.imported()
    };
    let options = Options { shuffle: Some(17), ..folder.options(&[input]) };
    import::run(&options).unwrap();
    let drawn = folder.imported();
    let firsts = drawn[..50].iter().filter(|(_, label)| label == "first").count();
    assert!((10..40).contains(&firsts), "{firsts} of the first 50 rows are of the first class");
    import::run(&options).unwrap();
    assert_eq!(folder.imported(), drawn, "the same seed gives the same order");
    let same_rows = |mut rows: Vec<(String, String)>| {
        rows.sort();
        rows
    };
    assert_eq!(same_rows(drawn), same_rows(sorted));
}
