//! How fast a training step is, by length of rows, batch, lanes and threads, where its time goes, and how much of the
//! machine's own sgemm rate its useful arithmetic reaches.
//!
//! `step_time [BASE_MODEL] [PRESET] [SECONDS]`: PRESET is an adapter method, or `fusion3`, `fusion8` for a fusion of so
//! many; `seq_bn@3` has no adapters in the first three layers, `seq_bn+dropout` has the trunk's dropout on. `parallel8`
//! and `split8` are eight adapters for the whole batch and for an eighth of it each; `+predict` behind any of them
//! predicts instead of training, and then there are batches of one row too. Rows have log-normal lengths: `short` 20 tokens in the mean, `pairs` 42. Useful arithmetic is two operations
//! for each multiplication that the engine's products asked for, on real tokens alone. The sgemm rate is that of
//! libtorch's library on the shapes of the trunk's products with as many rows as a lane has, measured in between on as
//! many threads. One libtorch thread for each of our threads: set OMP_NUM_THREADS=1 and OMP_WAIT_POLICY=PASSIVE.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use graftwork_engine::{
    Dropout, Lane, LaneOptions, Network, Setup, Targets, Tokens, Trained, Trunk, initial_weights, take_multiplications,
    take_work_times, thread_seconds, use_one_thread,
};
use graftwork_model::BaseModel;
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    composition::Composition,
    head::{Head, HeadOutput},
    id::Name,
    random::{Purpose, Stream},
    recipe::slot,
};

/// A distribution of lengths: name, median, deviation of the logarithm.
type Lengths = (&'static str, f64, f64);
const LENGTHS: [Lengths; 2] = [("short", 17.3, 0.54), ("pairs", 39.0, 0.38)];
/// Different batches in a measurement.
const BATCHES: u32 = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    use_one_thread();
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or_else(|| ".graftwork/base/all-minilm-l6-v2".to_owned());
    let preset = arguments.next().unwrap_or_else(|| "seq_bn".to_owned());
    let seconds: f64 = arguments.next().map_or(Ok(4.0), |text| text.parse())?;
    let (method, work) = match preset.split_once('+') {
        Some((method, "dropout")) => (method, Task::Train(Some(Dropout { seed: 17, base_model: true }))),
        Some((method, "predict")) => (method, Task::Predict),
        Some((_, other)) => return Err(format!("+{other} is neither +dropout nor +predict").into()),
        None => (preset.as_str(), Task::Train(None)),
    };
    println!(
        "{preset}\nrows  batch lanes threads  examples/s  tokens/s  ms/step  GFLOP/s  sgemm  share  examples/core-s   \
         products attention  adapters elementwise  rest"
    );
    for lengths in LENGTHS {
        let all: &[usize] = if work == Task::Predict { &[1, 16, 64] } else { &[16, 64] };
        for &rows in all.iter().filter(|&&rows| rows > 1 || !method.starts_with("split")) {
            let network = network(Path::new(&base), method, rows)?;
            let batches: Vec<Lane> = (0..BATCHES).map(|index| batch(index, rows, lengths, &network)).collect();
            let cuts: &[(usize, usize)] = if work == Task::Predict { &[(1, 1)] } else { &[(1, 1), (2, 1), (2, 2)] };
            for &(lanes, threads) in cuts {
                let cut: Vec<Vec<Lane>> = batches.iter().map(|batch| cut(batch, lanes)).collect();
                measure(&network, &cut, (lengths.0, rows, threads), work, Duration::from_secs_f64(seconds));
            }
        }
    }
    Ok(())
}

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
enum Task {
    Train(Option<Dropout>),
    Predict,
}

fn network(base: &Path, preset: &str, rows: usize) -> Result<Network, Box<dyn std::error::Error>> {
    let model = BaseModel::open_without_tokenizer(base)?;
    let trunk = Trunk::open(&model, tch::Device::Cpu)?;
    let name: Name = "trained".parse()?;
    let labels = ["no", "yes"].map(str::to_owned).to_vec();
    let mut setup =
        Setup { heads: vec![(name.clone(), Head::new(HeadOutput::Classification { labels }))], ..Setup::default() };
    if let Some(count) = preset.strip_prefix("fusion") {
        let slots: Vec<Name> = (0..count.parse()?).map(slot).collect();
        let config = AdapterConfig::preset("seq_bn").ok_or("no such preset")?;
        let children = slots.iter().cloned().map(Composition::single).collect();
        setup.composition = Some(Composition::Fuse { children, name: Some(name.to_string()) });
        setup.adapters = slots.into_iter().map(|slot| (slot, config.clone())).collect();
        setup.fusions = BTreeMap::from([(name.to_string(), FusionConfig::default())]);
        setup.trained.fusions.insert(name.to_string());
        setup.trained.heads.insert(name);
    } else if let Some(count) = preset.strip_prefix("parallel").or(preset.strip_prefix("split")) {
        let slots: Vec<Name> = (0..count.parse()?).map(slot).collect();
        let config = AdapterConfig::preset("seq_bn").ok_or("no such preset")?;
        let children: Vec<_> = slots.iter().cloned().map(Composition::single).collect();
        setup.composition = Some(if preset.starts_with("split") {
            let batch_sizes = vec![rows / children.len(); children.len()];
            Composition::BatchSplit { children, batch_sizes }
        } else {
            Composition::Parallel { children }
        });
        let head = setup.heads.remove(0).1;
        setup.heads = slots.iter().map(|slot| (slot.clone(), head.clone())).collect();
        setup.adapters = slots.into_iter().map(|slot| (slot, config.clone())).collect();
        setup.trained = Trained::all(&setup);
    } else {
        let (method, without) = preset.split_once('@').unwrap_or((preset, "0"));
        let without: Vec<u32> = (0..without.parse()?).collect();
        let config = AdapterConfig::preset(method).ok_or("no such preset")?.without(&without);
        setup.composition = Some(Composition::single(name.clone()));
        setup.adapters = BTreeMap::from([(name, config)]);
        setup.trained = Trained::all(&setup);
    }
    let everything = Setup { trained: Trained::all(&setup), ..setup.clone() };
    let weights = initial_weights(&everything, trunk.description(), 17)?;
    Ok(Network::new(trunk, setup, weights)?)
}

fn batch(index: u32, rows: usize, (_, median, deviation): Lengths, network: &Network) -> Lane {
    let random = Stream::new(7, Purpose::WindowOrder);
    let mut normal = vec![0.0; rows];
    random.fill_normal(index, &mut normal);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length from 4 to 128")]
    let length = |normal: &f32| (median * (deviation * f64::from(*normal)).exp()).round().clamp(4.0, 128.0) as usize;
    let lengths: Vec<usize> = normal.iter().map(length).collect();
    let tokens: usize = lengths.iter().sum();
    let vocabulary = u64::from(network.description().vocab_size);
    let id = |token: usize| i64::try_from(random.below(1000 + index, token as u64, vocabulary)).unwrap_or(0);
    Lane {
        tokens: Tokens { ids: (0..tokens).map(id).collect(), type_ids: vec![0; tokens], lengths },
        targets: Targets::Classes((0..rows).map(|row| i64::from(row % 2 == 0)).collect()),
        rows: (0..rows as u64).collect(),
    }
}

fn cut(batch: &Lane, lanes: usize) -> Vec<Lane> {
    let rows = batch.tokens.lengths.len() / lanes;
    let Targets::Classes(classes) = &batch.targets else { unreachable!("batches of this example have classes") };
    let lane = |lane: usize| {
        let range = lane * rows..(lane + 1) * rows;
        let start: usize = batch.tokens.lengths[..range.start].iter().sum();
        let lengths = batch.tokens.lengths[range.clone()].to_vec();
        let end = start + lengths.iter().sum::<usize>();
        let (ids, type_ids) = (batch.tokens.ids[start..end].to_vec(), batch.tokens.type_ids[start..end].to_vec());
        Lane {
            tokens: Tokens { ids, type_ids, lengths },
            targets: Targets::Classes(classes[range.clone()].to_vec()),
            rows: batch.rows[range].to_vec(),
        }
    };
    (0..lanes).map(lane).collect()
}

/// What one thread has done.
struct Done {
    steps: usize,
    wall: f64,
    cpu: f64,
    /// By kind of work.
    seconds: [f64; 4],
    multiplications: u64,
}

fn measure(
    network: &Network,
    batches: &[Vec<Lane>],
    (lengths, rows, threads): (&str, usize, usize),
    work: Task,
    duration: Duration,
) {
    let lanes = batches[0].len();
    let tokens: usize = batches.iter().flatten().map(|lane| lane.tokens.ids.len()).sum::<usize>() / batches.len();
    // Before and after, since the machine's speed drifts.
    let before = sgemm_rate(tokens / lanes, threads, duration / 4);
    let start = Instant::now();
    let results = on_threads(threads, |thread| {
        let worker = network.share();
        move || {
            let dropout = if let Task::Train(dropout) = work { dropout } else { None };
            let options = LaneOptions { loss_scale: 1.0 / rows as f64, step: 0, dropout, skip_layers: &[] };
            let mine = thread * lanes / threads..(thread + 1) * lanes / threads;
            let mut steps = 0;
            let (begin, cpu) = (Instant::now(), thread_seconds());
            take_work_times();
            take_multiplications();
            while start.elapsed() < duration {
                for lane in &batches[steps % batches.len()][mine.clone()] {
                    let fits = match work {
                        Task::Train(_) => worker.lane(lane, &options).is_ok(),
                        Task::Predict => worker.predict(&lane.tokens, &[]).is_ok(),
                    };
                    assert!(fits, "the lanes of this example fit the trunk");
                }
                steps += 1;
            }
            let seconds = take_work_times().map(|(_, time)| time.as_secs_f64());
            let (wall, cpu) = (begin.elapsed().as_secs_f64(), thread_seconds() - cpu);
            Done { steps, wall, cpu, seconds, multiplications: take_multiplications() }
        }
    });
    let sgemm = f64::midpoint(before, sgemm_rate(tokens / lanes, threads, duration / 4));
    // Threads run their own share of every step; the slower one sets the pace, as at the end of a real step.
    let pace = results.iter().map(|done| done.steps as f64 / done.wall).fold(f64::INFINITY, f64::min);
    let total: f64 = results.iter().map(|done| done.wall).sum();
    // Processor time does not count what other programs take away.
    let cpu_step: f64 = results.iter().map(|done| done.cpu / done.steps as f64).sum();
    let of_step: f64 = results.iter().map(|done| done.multiplications as f64 / done.steps as f64).sum();
    let useful = 2.0 * of_step * pace / 1e9;
    let shares: Vec<f64> =
        (0..4).map(|kind| results.iter().map(|done| done.seconds[kind]).sum::<f64>() / total).collect();
    let rest = 1.0 - shares.iter().sum::<f64>();
    let parts: String = shares.iter().chain([&rest]).map(|share| format!("{:>8.1} %", 100.0 * share)).collect();
    println!(
        "{lengths} {rows:>5} {lanes:>5} {threads:>7} {:>11.1} {:>9.0} {:>8.1} {useful:>8.1} {sgemm:>6.1} {:>4.0} % {:>16.1} {parts}",
        pace * rows as f64,
        pace * tokens as f64,
        1000.0 / pace,
        100.0 * useful / sgemm,
        rows as f64 / cpu_step,
    );
}

/// Runs one closure on each of so many threads.
fn on_threads<T: Send, F: FnOnce() -> T + Send>(threads: usize, make: impl Fn(usize) -> F) -> Vec<T> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(make(thread))).collect();
        handles.into_iter().map(|handle| handle.join().expect("a measuring thread ends")).collect()
    })
}

/// GFLOP/s of libtorch's library on the trunk's shapes, forward and backward, of all threads together.
fn sgemm_rate(rows: usize, threads: usize, duration: Duration) -> f64 {
    let rates = on_threads(threads, |_| {
        move || {
            use_one_thread();
            let rows = i64::try_from(rows).expect("rows of a lane");
            let make = |shape: [i64; 2]| tch::Tensor::full(shape, 0.1, (tch::Kind::Float, tch::Device::Cpu));
            let layers = [(384, 384), (384, 384), (384, 384), (384, 384), (384, 1536), (1536, 384)];
            let products: Vec<_> = layers
                .iter()
                .map(|&(inputs, outputs)| (make([rows, inputs]), make([outputs, inputs]), make([rows, outputs])))
                .collect();
            let begin = Instant::now();
            let mut operations = 0.0;
            while begin.elapsed() < duration {
                for (x, weight, gradient) in &products {
                    let _out = x.linear(weight, None::<&tch::Tensor>);
                    let _below = gradient.mm(weight);
                    operations += 4.0 * (x.numel() * gradient.numel()) as f64 / rows as f64;
                }
            }
            operations / begin.elapsed().as_secs_f64() / 1e9
        }
    });
    rates.iter().sum()
}
