//! How fast a training step is, by lanes and threads, and where its time goes.
//!
//! `step_time [BASE_MODEL] [PRESET] [SECONDS]`: batches of 16 rows of 20 tokens in the mean (log-normal, 4 to 128) on a
//! trunk, `all-minilm-l6-v2` as the setup script unpacks it by default. One libtorch thread for each of our threads.
//! Set OMP_NUM_THREADS=1 and OMP_WAIT_POLICY=PASSIVE.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use graftwork_engine::{
    Lane, LaneOptions, Network, Setup, Targets, Tokens, Trained, Trunk, initial_weights, take_work_times,
    thread_seconds,
};
use graftwork_model::BaseModel;
use graftwork_shared::{
    adapter::AdapterConfig,
    composition::Composition,
    head::{Head, HeadOutput},
    random::{Purpose, Stream},
};

const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::set_num_threads(1);
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or_else(|| ".graftwork/base/all-minilm-l6-v2".to_owned());
    let preset = arguments.next().unwrap_or_else(|| "seq_bn".to_owned());
    let seconds: f64 = arguments.next().map_or(Ok(4.0), |text| text.parse())?;
    let network = network(Path::new(&base), &preset)?;
    let batches: Vec<Vec<Lane>> = (0..16).map(|index| vec![batch(index, &network)]).collect();
    let tokens: usize = batches.iter().map(|batch| batch[0].tokens.ids.len()).sum();
    println!("{preset}, batch {BATCH}, {:.1} tokens a row", tokens as f64 / (16 * BATCH) as f64);
    println!("lanes threads  examples/s  ms/step  examples/core-s   products attention   islands elementwise  rest");
    for lanes in [1, 2, 4, 8] {
        let cut: Vec<Vec<Lane>> = batches.iter().map(|batch| cut(&batch[0], lanes)).collect();
        for threads in [1, 2] {
            if threads <= lanes {
                measure(&network, &cut, threads, Duration::from_secs_f64(seconds));
            }
        }
    }
    Ok(())
}

fn network(base: &Path, preset: &str) -> Result<Network, Box<dyn std::error::Error>> {
    let model = BaseModel::open_without_tokenizer(base)?;
    let trunk = Trunk::open(&model, tch::Device::Cpu)?;
    let name: graftwork_shared::id::Name = "trained".parse()?;
    let labels = ["no", "yes"].map(str::to_owned).to_vec();
    let mut setup = Setup {
        composition: Some(Composition::single(name.clone())),
        adapters: BTreeMap::from([(name.clone(), AdapterConfig::preset(preset).ok_or("no such preset")?)]),
        heads: vec![(name, Head::new(HeadOutput::Classification { labels }))],
        ..Setup::default()
    };
    setup.trained = Trained::all(&setup);
    let weights = initial_weights(&setup, trunk.description(), 17)?;
    Ok(Network::new(trunk, setup, weights)?)
}

/// 16 rows of log-normal length: median 17.3, deviation 0.54 of the logarithm, so 20 in the mean.
fn batch(index: u32, network: &Network) -> Lane {
    let random = Stream::new(7, Purpose::WindowOrder);
    let mut normal = [0.0; BATCH];
    random.fill_normal(index, &mut normal);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length from 4 to 128")]
    let length = |normal: &f32| (17.3 * (0.54 * f64::from(*normal)).exp()).round().clamp(4.0, 128.0) as usize;
    let lengths: Vec<usize> = normal.iter().map(length).collect();
    let tokens: usize = lengths.iter().sum();
    let vocabulary = u64::from(network.description().vocab_size);
    let id = |token: usize| i64::try_from(random.below(1000 + index, token as u64, vocabulary)).unwrap_or(0);
    Lane {
        tokens: Tokens { ids: (0..tokens).map(id).collect(), type_ids: vec![0; tokens], lengths },
        targets: Targets::Classes((0..BATCH).map(|row| i64::from(row % 2 == 0)).collect()),
        rows: (0..BATCH as u64).collect(),
    }
}

fn cut(batch: &Lane, lanes: usize) -> Vec<Lane> {
    let rows = BATCH / lanes;
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

fn measure(network: &Network, batches: &[Vec<Lane>], threads: usize, duration: Duration) {
    let lanes = batches[0].len();
    let workers: Vec<Network> = (0..threads).map(|_| network.share()).collect();
    let start = Instant::now();
    let results: Vec<(usize, [f64; 4], [f64; 2])> = std::thread::scope(|scope| {
        let run = |(thread, worker): (usize, Network)| {
            scope.spawn(move || {
                let options = LaneOptions { loss_scale: 1.0 / BATCH as f64, step: 0, dropout: None, skip_layers: &[] };
                let mine = thread * lanes / threads..(thread + 1) * lanes / threads;
                let mut steps = 0;
                let (begin, cpu) = (Instant::now(), thread_seconds());
                take_work_times();
                while start.elapsed() < duration {
                    for lane in &batches[steps % batches.len()][mine.clone()] {
                        worker.lane(lane, &options).expect("the lanes of this example fit the trunk");
                    }
                    steps += 1;
                }
                let times = take_work_times().map(|(_, time)| time.as_secs_f64());
                (steps, times, [begin.elapsed().as_secs_f64(), thread_seconds() - cpu])
            })
        };
        let handles: Vec<_> = workers.into_iter().enumerate().map(run).collect();
        handles.into_iter().map(|handle| handle.join().expect("a measuring thread ends")).collect()
    });
    // Threads run their own share of every step; the slower one sets the pace, as at the end of a real step.
    let pace = results.iter().map(|(steps, _, [wall, _])| *steps as f64 / wall).fold(f64::INFINITY, f64::min);
    let total: f64 = results.iter().map(|(_, _, [wall, _])| wall).sum();
    // Processor time does not count what other programs take away.
    let cpu_step: f64 = results.iter().map(|(steps, _, [_, cpu])| cpu / *steps as f64).sum();
    let shares: Vec<f64> =
        (0..4).map(|kind| results.iter().map(|(_, times, _)| times[kind]).sum::<f64>() / total).collect();
    let rest = 1.0 - shares.iter().sum::<f64>();
    let percent = |share: f64| format!("{:>8.1} %", 100.0 * share);
    println!(
        "{lanes:>5} {threads:>7} {:>11.1} {:>8.1} {:>16.1} {}{}{}{}{}",
        pace * BATCH as f64,
        1000.0 / pace,
        BATCH as f64 / cpu_step,
        percent(shares[0]),
        percent(shares[1]),
        percent(shares[2]),
        percent(shares[3]),
        percent(rest)
    );
}
