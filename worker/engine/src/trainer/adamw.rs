//! AdamW (Loshchilov and Hutter 2019) on one flat buffer, in plain Rust.
//!
//! The arithmetic is torch's single-tensor form, operation for operation in `f32`, with factors computed in `f64` and
//! rounded once. The loop is element by element, so neither threads nor the order of tensors can change a byte.

use std::ops::Range;

use graftwork_shared::training::Training;

use crate::kernel::vectorised;

/// First and second moments of every trained number, in the order of the layout.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    /// Running mean of gradients.
    pub(crate) first: Vec<f32>,
    /// Running mean of squared gradients.
    pub(crate) second: Vec<f32>,
}

/// The factors of one update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// `1 - rate · decay`, for tensors that decay.
    keep: f32,
    first_weight: f32,
    second_keep: f32,
    second_weight: f32,
    step_size: f32,
    second_correction: f32,
    epsilon: f32,
}

impl Moments {
    /// Zeros for `numbers` trained numbers.
    pub(crate) fn new(numbers: usize) -> Self {
        Self { first: vec![0.0; numbers], second: vec![0.0; numbers] }
    }

    /// Updates the parameters in a range, which either decay or do not.
    pub(crate) fn update(
        &mut self,
        range: Range<usize>,
        parameters: &mut [f32],
        gradient: &[f32],
        factors: &Factors,
        decays: bool,
    ) {
        let keep = if decays { factors.keep } else { 1.0 };
        let (first, second) = (&mut self.first[range.clone()], &mut self.second[range.clone()]);
        update(&mut parameters[range.clone()], &gradient[range], first, second, *factors, keep);
    }
}

vectorised! {
    fn update(
        parameters: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        factors: Factors,
        keep: f32,
    ) {
        let values = parameters.iter_mut().zip(gradient);
        for ((parameter, &gradient), (first, second)) in values.zip(first.iter_mut().zip(second)) {
            *first += factors.first_weight * (gradient - *first);
            *second = *second * factors.second_keep + factors.second_weight * gradient * gradient;
            let scale = second.sqrt() / factors.second_correction + factors.epsilon;
            *parameter = *parameter * keep - factors.step_size * *first / scale;
        }
    }
}

impl Factors {
    /// The factors of update `step`, counted from 0, at this learning rate.
    pub(crate) fn new(training: &Training, step: u64, rate: f64) -> Self {
        let [beta1, beta2] = training.betas;
        let done = i32::try_from(step + 1).unwrap_or(i32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
        let round = |factor: f64| factor as f32;
        Self {
            keep: round(1.0 - rate * training.weight_decay),
            first_weight: round(1.0 - beta1),
            second_keep: round(beta2),
            second_weight: round(1.0 - beta2),
            step_size: round(rate / (1.0 - beta1.powi(done))),
            second_correction: round((1.0 - beta2.powi(done)).sqrt()),
            epsilon: round(training.epsilon),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{kernel::Instructions, testing::cases};

    // torch 2.11: p = [0.5, -1.25, 2, 0.001]; AdamW([p], lr = 0.01, betas = (0.9, 0.98), eps = 1e-6, weight_decay = 0.1);
    // gradients below; p after each step.
    const GRADIENTS: [[f32; 4]; 3] = [[0.1, -0.2, 3.0, 1e-5], [-0.3, 0.0, 2.5, -2e-5], [0.05, 0.4, -1.0, 0.0]];
    const DECAYED: [[f32; 4]; 3] = [
        [0.489_500_1, -1.238_75, 1.988, -0.008_091_91],
        [0.493_933_62, -1.230_778_3, 1.976_091_7, -0.004_649_809],
        [0.496_216_77, -1.232_928_4, 1.968_251_8, -0.002_013_827_7],
    ];
    const PLAIN: [[f32; 4]; 3] = [
        [0.490_000_1, -1.24, 1.99, -0.008_090_91],
        [0.494_923_1, -1.233_267_1, 1.980_079_7, -0.004_656_901],
        [0.497_700_18, -1.236_647_8, 1.974_215_7, -0.002_025_569_3],
    ];

    fn run(decays: bool) -> Vec<Vec<f32>> {
        let training = Training { betas: [0.9, 0.98], epsilon: 1e-6, weight_decay: 0.1, ..Training::default() };
        let (mut parameters, mut moments) = (vec![0.5, -1.25, 2.0, 0.001], Moments::new(4));
        let mut path = Vec::new();
        for (step, gradient) in (0..).zip(GRADIENTS) {
            moments.update(0..4, &mut parameters, &gradient, &Factors::new(&training, step, 0.01), decays);
            path.push(parameters.clone());
        }
        path
    }

    #[test]
    fn updates_are_those_of_torch() {
        for (decays, expected) in [(true, DECAYED), (false, PLAIN)] {
            for (ours, torch) in run(decays).iter().zip(expected) {
                for (ours, torch) in ours.iter().zip(torch) {
                    assert!((ours - torch).abs() <= 2.5e-7 * torch.abs().max(1e-2), "{ours} {torch}");
                }
            }
        }
    }

    #[test]
    fn a_rate_of_zero_moves_moments_only() {
        let (mut parameters, mut moments) = (vec![1.0, 2.0], Moments::new(2));
        let factors = Factors::new(&Training { weight_decay: 0.5, ..Training::default() }, 0, 0.0);
        moments.update(0..2, &mut parameters, &[1.0, -1.0], &factors, true);
        assert_eq!(parameters, [1.0, 2.0]);
        assert!(moments.first[0] > 0.0 && moments.first[1] < 0.0);
    }

    /// The textbook's AdamW of one number in f64, which decays so much: after each gradient.
    fn plainly(training: &Training, rate: f64, decay: f64, start: f32, gradients: &[f32]) -> Vec<f64> {
        let [beta1, beta2] = training.betas;
        let (mut parameter, mut first, mut second) = (f64::from(start), 0.0, 0.0);
        let path = gradients.iter().zip(1..).map(|(&gradient, step)| {
            let gradient = f64::from(gradient);
            first = beta1 * first + (1.0 - beta1) * gradient;
            second = beta2 * second + (1.0 - beta2) * gradient * gradient;
            let [first, second] = [first / (1.0 - beta1.powi(step)), second / (1.0 - beta2.powi(step))];
            parameter = parameter * (1.0 - rate * decay) - rate * first / (second.sqrt() + training.epsilon);
            parameter
        });
        path.collect()
    }

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn any_update_is_the_textbooks_and_stays_in_its_range(
            starts in prop::collection::vec(-2.0..2.0_f32, 1..60),
            gradients in prop::collection::vec(prop::collection::vec((-1.0..1.0_f32, -12..6), 60), 1..5),
            (from, to, decays) in (0..60_usize, 0..60_usize, any::<bool>()),
            (beta1, beta2) in (0.0..0.95_f64, 0.9..0.999_f64),
            (rate, weight_decay, epsilon) in (0.0..0.1_f64, 0.0..0.5_f64, 1e-8..1e-4_f64),
        ) {
            let training = Training { betas: [beta1, beta2], epsilon, weight_decay, ..Training::default() };
            let of = |&(digits, exponent): &(f32, i32)| digits * 2.0_f32.powi(exponent);
            let gradients: Vec<Vec<f32>> =
                gradients.iter().map(|step| step[..starts.len()].iter().map(of).collect()).collect();
            let [from, to] = [from.min(to), from.max(to)].map(|end| end.min(starts.len()));
            let path = Instructions::same(|| {
                let (mut parameters, mut moments) = (starts.clone(), Moments::new(starts.len()));
                let steps = (0..).zip(&gradients).map(|(step, gradient)| {
                    let factors = Factors::new(&training, step, rate);
                    moments.update(from..to, &mut parameters, gradient, &factors, decays);
                    parameters.clone()
                });
                steps.collect::<Vec<_>>()
            });
            for (at, &start) in starts.iter().enumerate() {
                let found = path.iter().map(|parameters| parameters[at]);
                if !(from..to).contains(&at) {
                    prop_assert!(found.map(f32::to_bits).all(|bits| bits == start.to_bits()));
                    continue;
                }
                let own: Vec<f32> = gradients.iter().map(|gradient| gradient[at]).collect();
                let expected = plainly(&training, rate, if decays { weight_decay } else { 0.0 }, start, &own);
                for (found, expected) in found.zip(expected) {
                    let far = (f64::from(found) - expected).abs();
                    prop_assert!(far < 2e-6 * (1.0 + expected.abs()), "{} {}", found, expected);
                }
            }
        }
    }
}
