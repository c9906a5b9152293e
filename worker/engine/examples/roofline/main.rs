//! What the machine can do, and how near the trunk's products come: one JSON object a line.
//!
//! `roofline [SECONDS]`, for one thread and for two:
//!
//! - `peak`: multiply-adds in registers alone, with the widest vectors that the kernels use;
//! - `bandwidth`: bytes a second of a sum over 512 MB of memory for each thread;
//! - `product`: a layer's products with packed weights, a network's six layers passing by, by number of rows; beside it
//!   libtorch's library on the same shapes. Intensity is operations for each byte of operands and result.

#[path = "../step_time/sgemm.rs"]
mod sgemm;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use graftwork_engine::{pieces::Product, use_one_thread};
use serde_json::json;

use sgemm::{LAYER, on_threads, sgemm_rate};

const ROWS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const LAYERS: usize = 6;

fn main() -> Result<(), std::num::ParseFloatError> {
    use_one_thread();
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(0.4), |text| text.parse())?;
    let duration = Duration::from_secs_f64(seconds);
    for threads in [1, 2] {
        let peak = of_all(threads, || peak_gflops(duration));
        println!("{}", json!({ "kind": "peak", "threads": threads, "gflops": peak }));
        let bandwidth = of_all(threads, || read_gigabytes(duration));
        println!("{}", json!({ "kind": "bandwidth", "threads": threads, "gigabytes_per_second": bandwidth }));
        for rows in ROWS {
            let (mut operations, mut bytes) = (0.0, 0.0);
            for (sums, columns) in LAYER {
                let product = Product::new([rows, sums, columns]);
                operations += product.operations();
                bytes += product.bytes();
            }
            println!(
                "{}",
                json!({
                    "kind": "product", "threads": threads, "rows": rows, "intensity": operations / bytes,
                    "gflops": of_all(threads, || product_gflops(rows, duration)),
                    "sgemm_gflops": sgemm_rate(rows, threads, duration),
                })
            );
        }
    }
    Ok(())
}

fn of_all(threads: usize, rate: impl Fn() -> f64 + Sync) -> f64 {
    on_threads(threads, |_| &rate).iter().sum()
}

fn product_gflops(rows: usize, duration: Duration) -> f64 {
    let layers = || LAYER.map(|(sums, columns)| Product::new([rows, sums, columns]));
    let mut products: Vec<Product> = (0..LAYERS).flat_map(|_| layers()).collect();
    let (begin, mut operations) = (Instant::now(), 0.0);
    while begin.elapsed() < duration {
        for product in &mut products {
            black_box(product.run());
            operations += product.operations();
        }
    }
    operations / begin.elapsed().as_secs_f64() / 1e9
}

fn read_gigabytes(duration: Duration) -> f64 {
    const VALUES: usize = 64 << 20;
    let values = vec![1_u64; VALUES];
    let (begin, mut passes) = (Instant::now(), 0);
    while begin.elapsed() < duration {
        let sum = black_box(&values).iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
        black_box(sum);
        passes += 1;
    }
    f64::from(passes) * 8.0 * VALUES as f64 / begin.elapsed().as_secs_f64() / 1e9
}

#[cfg(target_arch = "x86_64")]
fn peak_gflops(duration: Duration) -> f64 {
    use std::arch::{
        is_x86_feature_detected as has,
        x86_64::{
            _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps,
        },
    };
    /// Chains that run side by side: more than the latency of a multiply-add times the units.
    const CHAINS: usize = 16;
    const ROUNDS: u32 = 10_000;

    #[target_feature(enable = "avx512f")]
    fn wide(factor: f32) -> f32 {
        let factor = _mm512_set1_ps(factor);
        let mut sums = [_mm512_set1_ps(0.5); CHAINS];
        // Of equal chains the compiler moves values from one to the next.
        for (chain, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_ps(chain as f32);
        }
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn half(factor: f32) -> f32 {
        let factor = _mm256_set1_ps(factor);
        let mut sums = [_mm256_set1_ps(0.5); CHAINS - 2];
        for (chain, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_set1_ps(chain as f32);
        }
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        sums.iter().map(|sum| _mm256_cvtss_f32(*sum)).sum()
    }

    let (begin, mut operations) = (Instant::now(), 0.0);
    let width = if has!("avx512f") { 16 * CHAINS } else { 8 * (CHAINS - 2) };
    while begin.elapsed() < duration {
        if has!("avx512f") {
            // SAFETY: the machine has the instructions.
            black_box(unsafe { wide(black_box(0.5)) });
        } else if has!("avx2") && has!("fma") {
            // SAFETY: as above.
            black_box(unsafe { half(black_box(0.5)) });
        } else {
            return f64::NAN;
        }
        operations += 2.0 * width as f64 * f64::from(ROUNDS);
    }
    operations / begin.elapsed().as_secs_f64() / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_gflops(_: Duration) -> f64 {
    f64::NAN
}
