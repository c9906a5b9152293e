//! Rows from Parquet files to packed lanes, against token ids of Hugging Face's fast tokenizers.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use graftwork_dataset::{Access, GroupDigests, Order, ReadRequest, open, select};
use graftwork_engine::{BatchShape, Input, InputError, InputRequest, Position, Shelves, Targets, TextEncoder, Update};
use graftwork_shared::{
    assignment::Blame,
    data::{Columns, SplitManifest, TextColumns},
    digest::Digest,
    head::HeadOutput,
};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny_bert/tokenizer.json")
}

fn encoder(max_length: u32) -> TextEncoder {
    TextEncoder::open(&tokenizer(), max_length, 2).unwrap()
}

#[track_caller]
fn assert_ids(max_length: u32, texts: &[&str], expected: &[i64], second_text_at: usize) {
    let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
    let encoded = encoder(max_length).encode(0, &texts).unwrap();
    assert_eq!(encoded.ids, expected);
    let types: Vec<i64> = (0..expected.len()).map(|at| i64::from(at >= second_text_at)).collect();
    assert_eq!(encoded.type_ids, types);
}

// Expected ids: transformers' PreTrainedTokenizerFast with truncation=True. The file itself asks for padding to 12 and
// another truncation, which must not show.
#[test]
fn texts_become_the_ids_of_fast_tokenizers() {
    assert_ids(40, &["The film was Very good, xyz!"], &[2, 6, 7, 8, 19, 9, 81, 51, 78, 79, 82, 3], 99);
    assert_ids(40, &["日 film"], &[2, 1, 7, 3], 99);
    assert_ids(40, &[""], &[2, 3], 99);
    assert_ids(7, &["i loved this film and that plot"], &[2, 23, 25, 27, 7, 20, 3], 99);
}

#[test]
fn pairs_are_joined_and_cut_longest_first() {
    let pair = ["the plot is dull", "it was a very very poor film but we loved it"];
    let whole = [2, 6, 15, 17, 12, 3, 22, 8, 5, 19, 19, 14, 7, 21, 24, 25, 22, 3];
    assert_ids(40, &pair, &whole, 6);
    assert_ids(10, &pair, &[2, 6, 15, 17, 3, 22, 8, 5, 19, 3], 5);
    assert_ids(7, &pair, &[2, 6, 15, 3, 22, 8, 3], 4);
    let other = ["the cast was great and the plot was so very fine", "bad"];
    assert_ids(10, &other, &[2, 6, 16, 8, 13, 20, 6, 3, 10, 3], 8);
}

#[test]
fn a_model_without_segments_gets_zeros() {
    let encoder = TextEncoder::open(&tokenizer(), 40, 1).unwrap();
    let tokens = encoder.encode(0, &["good".to_owned(), "bad".to_owned()]).unwrap();
    assert_eq!(tokens.type_ids, [0; 5]);
}

#[test]
fn a_limit_below_the_special_tokens_and_a_broken_file_are_refused() {
    let error = TextEncoder::open(&tokenizer(), 3, 2).unwrap_err();
    assert_eq!(error.to_string(), "max_length 3 is too short: the tokenizer adds 3 special tokens; use at least 4");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "{\"version\": ").unwrap();
    let error = TextEncoder::open(&path, 40, 2).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json: not a tokenizer"), "{error}");
}

struct Data {
    folder: TempDir,
    runtime: Runtime,
}

impl Data {
    /// Two files of two row groups; row n has n % 5 + 1 words and the label n % 2.
    fn write(rows: i64) -> Self {
        let data = Self { folder: TempDir::new().unwrap(), runtime: Runtime::new().unwrap() };
        let half = rows / 2;
        data.write_file("a.parquet", 0..half, None);
        data.write_file("b.parquet", half..rows, None);
        data
    }

    fn write_file(&self, name: &str, rows: std::ops::Range<i64>, null: Option<i64>) {
        let text = |row: i64| (Some(row) != null).then(|| "good film ".repeat(usize::try_from(row % 5 + 1).unwrap()));
        let texts: ArrayRef = Arc::new(rows.clone().map(text).collect::<StringArray>());
        let labels: ArrayRef = Arc::new(rows.map(|row| row % 2).collect::<Int64Array>());
        let batch =
            RecordBatch::try_from_iter_with_nullable([("text", texts, true), ("label", labels, false)]).unwrap();
        let file = std::fs::File::create(self.folder.path().join(name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        let middle = batch.num_rows() / 2;
        writer.write(&batch.slice(0, middle)).unwrap();
        writer.flush().unwrap();
        writer.write(&batch.slice(middle, batch.num_rows() - middle)).unwrap();
        writer.close().unwrap();
    }

    fn manifest(&self) -> SplitManifest {
        let source = vec![self.folder.path().display().to_string()];
        let access = Access::anonymous();
        self.runtime.block_on(async {
            let files = open(&source, &access).await.unwrap();
            select(&files, None, None, &access).await.unwrap()
        })
    }

    fn input(&self, manifest: SplitManifest, position: Position, updates: u64) -> Input {
        self.input_of(manifest, position, updates, Arc::new(encoder(20)))
    }

    fn input_of(&self, manifest: SplitManifest, position: Position, updates: u64, encoder: Arc<TextEncoder>) -> Input {
        let labels = vec!["0".to_owned(), "1".to_owned()];
        let read = ReadRequest {
            manifest,
            columns: Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() },
            output: HeadOutput::Classification { labels },
            order: Order::Shuffled { seed: 4, window_bytes: 300 },
            epoch: 0,
            cursor: 0,
            groups: GroupDigests::default(),
        };
        let shape = BatchShape { batch_size: 3, accumulation: 2, lanes: 2 };
        let request = InputRequest { read, access: Access::anonymous(), shape, position, updates };
        Input::start(self.runtime.handle(), request, encoder)
    }
}

fn rows(update: &Update) -> Vec<u64> {
    update.lanes.iter().flatten().flat_map(|lane| lane.rows.clone()).collect()
}

/// `Invariant::EachRowOnce`.
#[test]
fn every_epoch_has_each_row_once_and_any_position_goes_on_with_the_next_row() {
    let data = Data::write(20);
    let read_on = |position: &Position, updates| {
        let mut input = data.input(data.manifest(), position.clone(), updates);
        (0..updates).map(|_| input.next_update().unwrap()).collect::<Vec<_>>()
    };
    let all = read_on(&Position::start(), 8);
    assert_eq!(all.iter().map(|update| update.consumed.rows).collect::<Vec<_>>(), [6, 6, 6, 2, 6, 6, 6, 2]);
    for epoch in all.chunks(4) {
        let mut numbers: Vec<u64> = epoch.iter().flat_map(rows).collect();
        assert!(!numbers.is_sorted());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        assert!(
            epoch[3].consumed.finished_epoch.is_some()
                && epoch[..3].iter().all(|u| u.consumed.finished_epoch.is_none())
        );
    }
    assert_ne!(all[3].consumed.finished_epoch, all[7].consumed.finished_epoch);
    for (done, update) in all.iter().enumerate().take(7) {
        let rest = read_on(&update.consumed.position, 7 - done as u64);
        for (again, first) in rest.iter().zip(&all[done + 1..]) {
            assert_eq!(again.lanes, first.lanes);
            assert_eq!(again.consumed.position, first.consumed.position);
            assert_eq!(again.consumed.finished_epoch, first.consumed.finished_epoch);
        }
    }
    let lane = all[0].lanes[1].as_ref().unwrap();
    let words = |row: &u64| usize::try_from(row % 5 + 1).unwrap();
    assert_eq!(lane.tokens.lengths, lane.rows.iter().map(|row| 2 + 2 * words(row)).collect::<Vec<_>>());
    assert_eq!(lane.targets, Targets::Classes(lane.rows.iter().map(|&row| i64::from(row % 2 == 1)).collect()));
}

#[test]
fn a_null_text_is_the_users_and_names_row_and_column() {
    let data = Data::write(8);
    data.write_file("b.parquet", 4..8, Some(6));
    let mut input = data.input(data.manifest(), Position::start(), 2);
    let error = (0..2).find_map(|_| input.next_update().err()).unwrap();
    assert_eq!(error.blame(), Blame::User);
    let message = error.to_string();
    assert!(message.contains("b.parquet") && message.contains("text"), "{message}");
    assert!(matches!(input.next_update(), Err(InputError::Stopped)));
}

#[test]
fn files_that_changed_since_the_plan_are_refused_by_name() {
    let data = Data::write(8);
    let manifest = data.manifest();
    data.write_file("a.parquet", 0..6, None);
    let mut input = data.input(manifest, Position::start(), 2);
    let error = (0..2).find_map(|_| input.next_update().err()).unwrap();
    assert_eq!(error.blame(), Blame::User);
    assert!(error.to_string().contains("a.parquet"), "{error}");
}

/// Waits until so many updates are packed.
fn wait_until_ready(input: &Input, updates: usize) {
    let since = Instant::now();
    while input.ready() < updates {
        assert!(since.elapsed() < Duration::from_mins(1), "{} of {updates} updates are ready", input.ready());
        std::thread::yield_now();
    }
}

// What must be ready is counted: a trainer that is slower than the input never finds an update missing, through the ends
// of epochs too.
#[test]
fn updates_are_packed_before_they_are_asked_for() {
    let data = Data::write(20);
    let updates = 12;
    let mut input = data.input(data.manifest(), Position::start(), updates);
    for taken in 0..updates {
        // Four wait, and a fifth one is in the thread's hands.
        wait_until_ready(&input, usize::try_from(updates - taken).unwrap().min(5));
        if updates - taken < 5 {
            // Now the last one may be what is in its hands, on the way to where there is room for it.
            std::thread::sleep(Duration::from_millis(20));
        }
        input.next_update().unwrap();
    }
    assert_eq!((input.late(), input.ready()), (0, 0));
}

#[test]
fn each_text_is_tokenised_once_and_in_no_later_run() {
    let (data, folder) = (Data::write(20), TempDir::new().unwrap());
    let run = |max_length, shelves: Option<u64>| {
        let encoder = match shelves {
            None => encoder(max_length),
            // Other shelves each time: what another process left is found.
            Some(most) => {
                let shelves = Arc::new(Shelves::new(folder.path().to_owned(), most));
                encoder(max_length).keeping(&shelves, &Digest::of(b"these files"))
            }
        };
        let encoder = Arc::new(encoder);
        let mut input = data.input_of(data.manifest(), Position::start(), 12, Arc::clone(&encoder));
        let lanes: Vec<_> = (0..12).map(|_| input.next_update().unwrap().lanes).collect();
        (lanes, encoder.tokenised())
    };
    // Three epochs of 20 rows, with 5 texts among them.
    let (expected, tokenised) = run(20, None);
    assert_eq!(tokenised, 60);
    assert_eq!(run(20, Some(1 << 20)), (expected.clone(), 5));
    assert_eq!(run(20, Some(1 << 20)), (expected.clone(), 0));
    // Ids under another limit are others.
    let (shorter, tokenised) = run(6, Some(1 << 20));
    assert_eq!(tokenised, 5);
    assert_ne!(shorter, expected);
    assert_eq!(run(20, Some(1 << 20)), (expected.clone(), 0));
    // No room: tokenised again.
    let (lanes, tokenised) = run(16, Some(4));
    assert_eq!(tokenised, 60);
    assert_eq!(lanes, run(16, None).0);
    // Damage.
    for shelf in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for file in fs::read_dir(shelf).unwrap().map(|entry| entry.unwrap().path()) {
            let mut bytes = fs::read(&file).unwrap();
            bytes[3] ^= 1;
            fs::write(file, bytes).unwrap();
        }
    }
    let (lanes, tokenised) = run(20, Some(1 << 20));
    assert_eq!(lanes, expected);
    assert!((1..=6).contains(&tokenised), "{tokenised}");
}
