//! Reads a large generated data set the way training does, and measures.
//!
//! `cargo run --release -p graftwork-dataset --example scale -- FOLDER [ROWS] [SHARDS]` writes ROWS (default 5 million)
//! rows of short texts into SHARDS (default 50) Parquet files below FOLDER unless they are there, and prints the time to
//! the first row, resident memory between step 200 and step 2,000 of 16 rows, and the rows a second of a whole epoch.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, GroupDigests, Order, ReadRequest, RowReader, open, select};
use graftwork_shared::{
    data::{Columns, TextColumns},
    head::HeadOutput,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

type Failure = Box<dyn std::error::Error>;

/// Rows of one optimizer update.
const STEP_ROWS: u64 = 16;

/// A training step of a fast device; without it 2,000 steps pass while the first windows are still read ahead.
const STEP_TIME: Duration = Duration::from_millis(5);

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: scale FOLDER [ROWS] [SHARDS]")?;
    let rows: u64 = arguments.next().map_or(Ok(5_000_000), |text| text.parse())?;
    let shards: u64 = arguments.next().map_or(Ok(50), |text| text.parse())?;
    let started = Instant::now();
    let bytes = generate(Path::new(&folder), rows, shards)?;
    println!("{rows} rows in {shards} shards, {} MB, {:.1} s to write", bytes >> 20, started.elapsed().as_secs_f64());

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let access = Access::anonymous();
    let started = Instant::now();
    let files = runtime.block_on(open(&vec![folder], &access))?;
    let opened = started.elapsed();
    let manifest = runtime.block_on(select(&files, None, None, &access))?;
    let order = Order::Shuffled { seed: 17, window_bytes: DEFAULT_WINDOW_BYTES };
    let request = ReadRequest {
        manifest,
        columns: Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() },
        output: HeadOutput::Classification { labels: vec!["no".to_owned(), "yes".to_owned()] },
        order,
        epoch: 0,
        cursor: 0,
        groups: GroupDigests::default(),
    };
    let mut reader = RowReader::start(runtime.handle(), request.clone(), access.clone());
    reader.next().ok_or("no row")??;
    println!(
        "open {:.0} ms, open to first row {:.0} ms, {} MB fetched by then",
        opened.as_secs_f64() * 1e3,
        started.elapsed().as_secs_f64() * 1e3,
        reader.bytes_read() >> 20
    );
    measure_memory(&mut reader)?;
    drop(reader);

    let started = Instant::now();
    let reader = RowReader::start(runtime.handle(), request.clone(), access.clone());
    let mut read = 0_u64;
    for row in reader {
        row?;
        read += 1;
        if read.is_multiple_of(1_000_000) {
            println!("  {read} rows: resident {} MB", resident_bytes()? >> 20);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("whole epoch: {read} rows in {seconds:.1} s, {:.0} rows a second", read as f64 / seconds);
    Ok(())
}

fn measure_memory(reader: &mut RowReader) -> Result<(), Failure> {
    let (mut least, mut most) = (u64::MAX, 0);
    let mut at_200 = 0;
    for step in 1..=2000 {
        for row in reader.take(usize::try_from(STEP_ROWS)?) {
            row?;
        }
        std::thread::sleep(STEP_TIME);
        if step >= 200 && step % 50 == 0 {
            let resident = resident_bytes()?;
            (least, most) = (least.min(resident), most.max(resident));
            if step == 200 {
                at_200 = resident;
            }
        }
    }
    let now = resident_bytes()?;
    println!(
        "resident: step 200 {:.1} MB, step 2000 {:.1} MB ({:+.1} %), least {:.1} MB, most {:.1} MB",
        at_200 as f64 / 1e6,
        now as f64 / 1e6,
        (now as f64 / at_200 as f64 - 1.0) * 100.0,
        least as f64 / 1e6,
        most as f64 / 1e6
    );
    Ok(())
}

/// Resident bytes of this process.
fn resident_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("VmRSS without a number")?.parse()?;
    Ok(kilobytes << 10)
}

/// Writes the shards that are not there yet. Returns their bytes.
fn generate(folder: &Path, rows: u64, shards: u64) -> Result<u64, Failure> {
    fs::create_dir_all(folder)?;
    let mut bytes = 0;
    for shard in 0..shards {
        let path = folder.join(format!("part-{shard:04}.parquet"));
        if !path.exists() {
            write_shard(&path, rows * shard / shards..rows * (shard + 1) / shards)?;
        }
        bytes += fs::metadata(path)?.len();
    }
    Ok(bytes)
}

fn write_shard(path: &Path, numbers: std::ops::Range<u64>) -> Result<(), Failure> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(32_768))
        .set_data_page_row_count_limit(4096)
        .build();
    let texts: StringArray = numbers.clone().map(|number| Some(sentence(number))).collect();
    let labels = Int64Array::from_iter_values(numbers.map(|number| i64::from(number % 3 == 0)));
    let columns: [(&str, ArrayRef); 2] = [("text", Arc::new(texts)), ("label", Arc::new(labels))];
    let batch = RecordBatch::try_from_iter(columns)?;
    let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

/// A dozen words that depend on the row's number.
fn sentence(number: u64) -> String {
    const WORDS: [&str; 16] = [
        "river", "seven", "paper", "light", "under", "quiet", "motor", "green", "winter", "letter", "market", "stone",
        "harbour", "question", "slowly", "north",
    ];
    let mut bits = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (number << 17);
    let mut text = number.to_string();
    for _ in 0..12 {
        text.push(' ');
        text.push_str(WORDS[usize::try_from(bits & 15).unwrap_or(0)]);
        bits >>= 5;
    }
    text
}
