//! Pieces of a step and of the input, each alone, with statistics: `cargo bench -p graftwork-engine`, or with a word to
//! measure only what has it in its name. Figures lie in `target/criterion`.
//!
//! Sizes are those of MiniLM: 384 wide, 1,536 in the middle, 12 heads, rows of 20 and of 44 tokens. The input needs what
//! `make data` fetches.

use std::{hint::black_box, path::Path, sync::Arc, time::Duration};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, GroupDigests, Order, ReadRequest, RowReader, open, select};
use graftwork_engine::{
    BatchShape, Input, InputRequest, Position, TextEncoder,
    pieces::{Activation, Attention, FirstAttention, Fusion, LayerNorm, Mask, Optimizer, Product, ProductOnce},
    use_one_thread,
};
use graftwork_shared::{
    data::{Columns, TextColumns},
    head::HeadOutput,
};
use parquet::arrow::ArrowWriter;
use tokio::runtime::Runtime;

fn kernels(criterion: &mut Criterion) {
    use_one_thread();
    let mut group = criterion.benchmark_group("product");
    for rows in [1, 20, 160, 512] {
        for (sums, columns) in [(384, 384), (384, 1536), (1536, 384)] {
            let mut product = Product::new([rows, sums, columns]);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number")]
            group.throughput(Throughput::Elements(product.operations() as u64));
            let name = BenchmarkId::new(format!("{sums}x{columns}"), rows);
            group.bench_function(name, |bencher| bencher.iter(|| black_box(product.run())[0]));
        }
    }
    group.finish();
    // Scores and contexts of attention: rows of 20 and of 44 tokens, and all heads of one query.
    let mut group = criterion.benchmark_group("product_once");
    let sizes = [[20, 32, 32], [44, 32, 48], [20, 20, 32], [44, 44, 32], [12, 384, 48], [12, 44, 384]];
    for [rows, sums, columns] in sizes {
        let mut product = ProductOnce::new([rows, sums, columns]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number")]
        group.throughput(Throughput::Elements(product.operations() as u64));
        let name = BenchmarkId::new(format!("{sums}x{columns}"), rows);
        group.bench_function(name, |bencher| bencher.iter(|| black_box(product.run())[0]));
    }
    group.finish();
    elementwise(criterion);
    attentions(criterion);
}

fn elementwise(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("elementwise");
    for rows in [20, 320] {
        group.throughput(Throughput::Elements(rows * 384));
        let sizes = [usize::try_from(rows).unwrap_or_default(), 384];
        let mut norm = LayerNorm::new(sizes);
        group.bench_function(BenchmarkId::new("norm", rows), |bencher| bencher.iter(|| black_box(norm.forward())[0]));
        group.bench_function(BenchmarkId::new("norm_backward", rows), |bencher| {
            bencher.iter(|| black_box(norm.backward())[0]);
        });
        let mask = Mask::new(sizes[0]);
        group.bench_function(BenchmarkId::new("dropout_mask", rows), |bencher| bencher.iter(|| mask.run(384)));
        group.throughput(Throughput::Elements(rows * 1536));
        for (name, mut activation) in Activation::all(sizes[0] * 1536) {
            group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                bencher.iter(|| black_box(activation.run())[0]);
            });
        }
    }
    group.finish();
    // About what an adapter of 24 columns has in 6 layers, and a fusion.
    let mut group = criterion.benchmark_group("optimizer");
    for numbers in [100_000, 3_000_000] {
        group.throughput(Throughput::Elements(numbers));
        let mut optimizer = Optimizer::new(usize::try_from(numbers).unwrap_or_default());
        group.bench_function(BenchmarkId::new("update", numbers), |bencher| {
            bencher.iter(|| black_box(optimizer.run()).0);
        });
    }
    group.finish();
}

fn attentions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for tokens in [10, 20, 44, 128] {
        group.throughput(Throughput::Elements(8 * tokens as u64));
        for (name, dropout) in [("plain", false), ("dropout", true)] {
            let attention = Attention::new([8, tokens], dropout);
            group.bench_function(BenchmarkId::new(name, tokens), |bencher| bencher.iter(|| attention.run()));
        }
        let first = FirstAttention::new([8, tokens]);
        group.bench_function(BenchmarkId::new("first", tokens), |bencher| bencher.iter(|| first.run()));
    }
    group.finish();
    let mut group = criterion.benchmark_group("fusion");
    for tokens in [20, 320] {
        for adapters in [3, 8] {
            group.throughput(Throughput::Elements(tokens));
            let mut fusion = Fusion::new([usize::try_from(tokens).unwrap_or_default(), adapters]);
            let name = |way: &str| BenchmarkId::new(format!("{way}_{adapters}"), tokens);
            group.bench_function(name("forward"), |bencher| bencher.iter(|| black_box(fusion.forward())[0]));
            group.bench_function(name("backward"), |bencher| bencher.iter(|| black_box(fusion.backward())[0]));
        }
    }
    group.finish();
}

/// Rows of the input's benchmarks.
const ROWS: u64 = 4096;

fn input(criterion: &mut Criterion) {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.graftwork/base/all-minilm-l6-v2");
    let tokenizer = base.join("tokenizer.json");
    assert!(tokenizer.exists(), "{} is not there; `make data` fetches it", tokenizer.display());
    let folder = tempfile::tempdir().expect("a folder for the rows");
    let texts: Vec<String> = (0..ROWS).map(sentence).collect();
    write(&folder.path().join("rows.parquet"), &texts);
    let runtime = Runtime::new().expect("a runtime");
    let request = request(&runtime, folder.path());
    let encoder = Arc::new(TextEncoder::open(&tokenizer, 128, 2).expect("a tokenizer"));
    let mut group = criterion.benchmark_group("input");
    group.throughput(Throughput::Elements(ROWS)).sample_size(10).measurement_time(Duration::from_secs(4));
    group.bench_function("parquet", |bencher| {
        bencher.iter(|| RowReader::start(runtime.handle(), request.clone(), Access::anonymous()).count());
    });
    group.bench_function("tokenizer", |bencher| {
        let encode = |text: &String| encoder.encode(0, std::slice::from_ref(text)).map_or(0, |tokens| tokens.ids.len());
        bencher.iter(|| texts.iter().map(encode).sum::<usize>());
    });
    group.bench_function("parquet_tokenizer_packer", |bencher| {
        bencher.iter(|| {
            let shape = BatchShape { batch_size: 16, accumulation: 1, lanes: 2 };
            let updates = ROWS / 16;
            let (read, position, access) = (request.clone(), Position::start(), Access::anonymous());
            let request = InputRequest { read, access, shape, position, updates };
            let mut input = Input::start(runtime.handle(), request, Arc::clone(&encoder));
            (0..updates).map(|_| input.next_update().map_or(0, |update| update.consumed.tokens)).sum::<u64>()
        });
    });
    group.finish();
}

fn request(runtime: &Runtime, folder: &Path) -> ReadRequest {
    let access = Access::anonymous();
    let manifest = runtime.block_on(async {
        let files = open(&vec![folder.display().to_string()], &access).await.expect("rows that were just written");
        select(&files, None, None, &access).await.expect("all rows")
    });
    ReadRequest {
        manifest,
        columns: Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() },
        output: HeadOutput::Classification { labels: vec!["0".to_owned(), "1".to_owned()] },
        order: Order::Shuffled { seed: 17, window_bytes: DEFAULT_WINDOW_BYTES },
        epoch: 0,
        cursor: 0,
        groups: GroupDigests::default(),
    }
}

/// 6 to 21 words that depend on the row's number.
fn sentence(number: u64) -> String {
    const WORDS: [&str; 16] = [
        "river", "seven", "paper", "light", "under", "quiet", "motor", "green", "winter", "letter", "market", "stone",
        "harbour", "question", "slowly", "north",
    ];
    let mut bits = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (number << 17);
    let mut text = number.to_string();
    for _ in 0..5 + number % 16 {
        text.push(' ');
        text.push_str(WORDS[usize::try_from(bits & 15).unwrap_or_default()]);
        bits = bits.rotate_left(5);
    }
    text
}

fn write(path: &Path, texts: &[String]) {
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..texts.len()).map(|row| i64::from(row % 3 == 0))));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    let batch = RecordBatch::try_from_iter([("text", texts), ("label", labels)]).expect("two columns");
    let file = std::fs::File::create(path).expect("a file in a folder of its own");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
    writer.write(&batch).expect("room on the disk");
    writer.close().expect("room on the disk");
}

criterion_group!(benches, kernels, input);
criterion_main!(benches);
