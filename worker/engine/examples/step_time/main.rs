//! How fast a training step is, by length of rows, batch, lanes and threads, where its time goes, and how much of the
//! machine's own sgemm rate its useful arithmetic reaches.
//!
//! `step_time [BASE_MODEL] [PRESET] [SECONDS] [OPTION…]`: PRESET is an adapter method, or `fusion3`, `fusion8` for a
//! fusion of so many; `seq_bn@3` has no adapters in the first three layers, `seq_bn+dropout` has the trunk's dropout on.
//! `parallel8` and `split8` are eight adapters for the whole batch and for an eighth of it each; `+predict` behind any of
//! them predicts instead of training, and then there are batches of one row too.
//!
//! Rows have log-normal lengths: `short` 20 tokens in the mean, `pairs` 42. Options:
//!
//! - `--tokens 10,40`: rows of exactly so many tokens instead;
//! - `--texts FILE --columns NAME[,NAME] [--label NAME]`: rows of a Parquet file instead, cut after 128 tokens;
//! - `--batches 1,16`: other batches; `--cuts 2x2,1x1`: lanes and threads;
//! - `--json`: one JSON object a line.
//!
//! Useful arithmetic is two operations for each multiplication that the engine's products asked for, on real tokens
//! alone. The sgemm rate is that of libtorch's library on the shapes of the trunk's products with as many rows as a lane
//! has, measured before and after on as many threads. One libtorch thread for each of our threads: set
//! OMP_NUM_THREADS=1 and OMP_WAIT_POLICY=PASSIVE.

mod measure;
mod network;
mod options;
mod rows;
mod sgemm;

use std::{path::Path, time::Duration};

use graftwork_engine::{Lane, Network, use_one_thread};

use measure::{Place, measure};
use options::{Options, Source, Task};

type Failure = Box<dyn std::error::Error>;

/// Different batches in a measurement.
const BATCHES: usize = 8;

fn main() -> Result<(), Failure> {
    use_one_thread();
    let options = Options::parse(std::env::args().skip(1))?;
    if !options.json {
        println!("{}\n{}", options.preset, measure::HEADER);
    }
    let texts = match &options.source {
        Source::Texts(texts) => Some(rows::encoded(Path::new(&options.base), texts)?),
        Source::Lengths(_) => None,
    };
    for &batch_size in &options.batches {
        let network = network::network(Path::new(&options.base), options.method(), batch_size)?;
        if let Some(texts) = &texts {
            run(&options, &network, ("texts", batch_size), &rows::batches(texts, batch_size, BATCHES)?);
        }
        if let Source::Lengths(all) = &options.source {
            for lengths in all {
                let batches: Vec<Lane> =
                    (0..BATCHES).map(|index| rows::drawn(index, batch_size, lengths, &network)).collect();
                run(&options, &network, (&lengths.name, batch_size), &batches);
            }
        }
    }
    Ok(())
}

fn run(options: &Options, network: &Network, (lengths, batch_size): (&str, usize), batches: &[Lane]) {
    for &(lanes, threads) in &options.cuts {
        if lanes > batch_size || (options.task == Task::Predict && lanes != threads) {
            continue;
        }
        // Each thread predicts batches of its own; lanes of one batch are trained together.
        let together = if options.task == Task::Predict { 1 } else { lanes };
        let cut: Vec<Vec<Lane>> = batches.iter().map(|batch| rows::cut(batch, together)).collect();
        let place = Place { preset: &options.preset, lengths, batch_size, threads };
        let measured = measure(network, &cut, &place, options.task, Duration::from_secs_f64(options.seconds));
        if options.json { println!("{}", measured.json(&place)) } else { println!("{}", measured.line(&place)) }
    }
}
