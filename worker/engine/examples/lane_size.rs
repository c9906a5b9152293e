//! What a token costs in lanes of few and of many rows, on one thread: the most that could be gained by computing the
//! rows of several small tasks in one product (`execution = "fused"`).
//!
//! `cargo run --release -p graftwork-engine --example lane_size -- [BASE_MODEL] [SECONDS]`

use std::path::Path;

use graftwork_engine::{
    Device, Lane, LaneOptions, Network, Setup, Targets, Tokens, Trained, Trunk, initial_weights, thread_seconds,
    use_one_thread,
};
use graftwork_model::BaseModel;
use graftwork_shared::{
    adapter::AdapterConfig,
    composition::Composition,
    head::{Head, HeadOutput},
    recipe::trained_slot,
};

/// Tokens of a row.
const LENGTH: usize = 10;

fn network(base: &Path) -> Result<Network, Box<dyn std::error::Error>> {
    let trunk = Trunk::open(&BaseModel::open(base)?, Device::Cpu)?;
    let own = trained_slot();
    let labels = ["no", "yes"].map(str::to_owned).to_vec();
    let config = AdapterConfig::preset("seq_bn").ok_or("no such preset")?;
    let mut setup = Setup {
        composition: Some(Composition::single(own.clone())),
        adapters: [(own.clone(), config)].into(),
        heads: vec![(own, Head::new(HeadOutput::Classification { labels }))],
        ..Setup::default()
    };
    setup.trained = Trained::all(&setup);
    let weights = initial_weights(&setup, trunk.description(), 1)?;
    Ok(Network::new(trunk, setup, weights)?)
}

fn lane(rows: usize) -> Lane {
    let ids: Vec<i64> = (0..).map(|token| 1000 + token * 37 % 20_000).take(rows * LENGTH).collect();
    let tokens = Tokens { type_ids: vec![0; ids.len()], ids, lengths: vec![LENGTH; rows] };
    Lane { tokens, targets: Targets::Classes(vec![1; rows]), rows: (0..rows as u64).collect() }
}

/// Microseconds of the thread for one token.
fn cost(network: &Network, lane: &Lane, seconds: f64) -> Result<f64, Box<dyn std::error::Error>> {
    let options = LaneOptions { loss_scale: 1.0, step: 0, dropout: None, skip_layers: &[] };
    let began = thread_seconds();
    let mut tokens = 0;
    while thread_seconds() - began < seconds {
        network.lane(lane, &options)?;
        tokens += lane.tokens.ids.len();
    }
    Ok((thread_seconds() - began) * 1e6 / tokens as f64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or_else(|| ".graftwork/base/all-minilm-l6-v2".to_owned());
    let seconds: f64 = arguments.next().map_or(Ok(0.4), |text| text.parse())?;
    use_one_thread();
    let network = network(Path::new(&base))?;
    let sizes = [1, 2, 4, 8, 16, 32, 51];
    let lanes = sizes.map(lane);
    let mut costs = sizes.map(|_| Vec::new());
    // In turn, so that whatever else the machine does falls on all sizes.
    for _ in 0..5 {
        for (lane, costs) in lanes.iter().zip(&mut costs) {
            costs.push(cost(&network, lane, seconds)?);
        }
    }
    for costs in &mut costs {
        costs.sort_by(f64::total_cmp);
    }
    let least = costs.iter().map(|costs| costs[2]).fold(f64::INFINITY, f64::min);
    for (rows, costs) in sizes.iter().zip(&costs) {
        let tokens = rows * LENGTH;
        println!("{tokens:4} tokens: {:6.1} µs a token, {:.2} times the least", costs[2], costs[2] / least);
    }
    Ok(())
}
