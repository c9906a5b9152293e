//! How long one exchange of gradients takes: Gloo on loopback, or TLS, ranks as threads, one subtree each.
//!
//! `cargo run --release -p graftwork-collective --example exchange`, with `-- FOLDER` for TLS with that worker's pair,
//! prints a line for every number of ranks and size of bucket: milliseconds for an exchange (median of several), and
//! megabytes that one rank sends, small and sliced. `--small` stops at three ranks and half a megabyte.

use std::{
    ffi::OsString,
    net::Ipv4Addr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{
    Backend, CollectiveError, ExchangePlan, FormRequest, MemoryRendezvous, Way, form, partial_sums, reduce_lanes,
    tls::Identity,
};

/// From an adapter with few parameters to a fusion of a base-sized trunk, in bytes.
const BUCKETS: &[usize] = &[64 << 10, 256 << 10, 512 << 10, 4 << 20, 16 << 20, 85_000_000];
/// Buckets in memory at once, above which a line is left out: small holds every rank's on every rank, twice.
const MEMORY_BYTES: usize = 6 << 30;

type Timed = (Duration, u64);

fn member(
    (rank, ranks): (usize, usize),
    table: MemoryRendezvous,
    identity: Option<Identity>,
    buckets: &[usize],
) -> Result<Vec<Vec<Option<Timed>>>, CollectiveError> {
    let mut request = FormRequest::new("exchange", ranks as u64, rank, ranks);
    if let Some(identity) = identity {
        request.backend = Backend::Tls { address: Ipv4Addr::LOCALHOST.into(), identity };
    }
    let mut group = form(request, Arc::new(table))?;
    let plan = ExchangePlan::new(ranks, ranks);
    let mut lines = Vec::new();
    for &bytes in buckets {
        let length = bytes / size_of::<f32>();
        let mut line = Vec::new();
        for way in [Way::Small, Way::Sliced] {
            let held = if way == Way::Small { 2 * ranks + 1 } else { 5 };
            if held * ranks * bytes > MEMORY_BYTES {
                line.push(None);
                continue;
            }
            let mut times = Vec::new();
            let mut sent_bytes = 0;
            for _ in 0..if bytes > 8 << 20 { 3 } else { 15 } {
                let own = partial_sums(plan.tree(), rank, vec![Some(vec![1.0; length])]);
                group.barrier()?;
                let began = Instant::now();
                sent_bytes = reduce_lanes(group.as_mut(), &plan, own, length, way)?.sent_bytes;
                times.push(began.elapsed());
            }
            times.sort_unstable();
            line.push(Some((times[times.len() / 2], sent_bytes)));
        }
        lines.push(line);
    }
    group.leave()?;
    Ok(lines)
}

fn show(timed: Option<Timed>) -> String {
    timed.map_or_else(
        || format!("{:>9} | {:>9}", "-", "-"),
        |(time, sent)| format!("{:>9.2} | {:>9.2}", time.as_secs_f64() * 1e3, sent as f64 / 1e6),
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (small, folders): (Vec<OsString>, Vec<OsString>) =
        std::env::args_os().skip(1).partition(|word| word == "--small");
    let identity = folders.first().map(|folder| Identity::read(folder.as_ref())).transpose()?;
    let (most_ranks, buckets) = if small.is_empty() { (8, BUCKETS) } else { (3, &BUCKETS[..3]) };
    println!("| ranks | bucket MB |  small ms |   sent MB | sliced ms |   sent MB |");
    println!("|---|---|---|---|---|---|");
    for ranks in 2..=most_ranks {
        let table = MemoryRendezvous::new();
        let lines = thread::scope(|scope| {
            let member = |rank| {
                let (table, identity) = (table.clone(), identity.clone());
                scope.spawn(move || member((rank, ranks), table, identity, buckets))
            };
            let members: Vec<_> = (0..ranks).map(member).collect();
            let mut results = members.into_iter().filter_map(|member| member.join().ok());
            let first = results.next();
            results.for_each(drop);
            first.unwrap_or_else(|| Ok(Vec::new()))
        })?;
        for (bytes, line) in buckets.iter().zip(lines) {
            println!("| {ranks:>5} | {:>9.2} | {} | {} |", *bytes as f64 / 1e6, show(line[0]), show(line[1]));
        }
    }
    Ok(())
}
