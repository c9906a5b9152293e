//! What libtorch's math library reaches on the trunk's products, and threads to measure with.

use std::time::{Duration, Instant};

use graftwork_engine::use_one_thread;

/// Products of a layer: inputs and outputs.
pub(crate) const LAYER: [(usize, usize); 6] =
    [(384, 384), (384, 384), (384, 384), (384, 384), (384, 1536), (1536, 384)];

/// Runs one closure on each of so many threads.
pub(crate) fn on_threads<T: Send, F: FnOnce() -> T + Send>(threads: usize, make: impl Fn(usize) -> F) -> Vec<T> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(make(thread))).collect();
        handles.into_iter().map(|handle| handle.join().expect("a measuring thread ends")).collect()
    })
}

/// GFLOP/s of libtorch's library on the trunk's shapes, forward and backward, of all threads together.
pub(crate) fn sgemm_rate(rows: usize, threads: usize, duration: Duration) -> f64 {
    let rates = on_threads(threads, |_| {
        move || {
            use_one_thread();
            let signed = |size: usize| i64::try_from(size).expect("the size of a matrix");
            let make =
                |shape: [usize; 2]| tch::Tensor::full(shape.map(signed), 0.1, (tch::Kind::Float, tch::Device::Cpu));
            let products: Vec<_> = LAYER
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
