//! Losses that are scaled so that fp16 gradients neither vanish nor overflow.
//!
//! fp16 ends at 65,504 and has nothing below 6e-8. A lane's loss is scaled by a power of two, which changes no digit; when
//! a gradient overflows nevertheless, the lane is computed again with a smaller factor. So a lane's result is a function
//! of its rows and parameters alone, and no checkpoint has to know a factor.

use crate::rows::{LaneOptions, LaneOutput};

/// The first factor. A loss scaled by it leaves gradients of 1e-10 and of 1 in range.
const FIRST: f64 = 32_768.0;
/// What the factor is divided by after an overflow; after four of them it is below 1.
const STEP: f64 = 16.0;

/// A lane whose gradient is finite with the largest factor that leaves it so. With none that does, it is as it comes
/// without one.
pub(super) fn lane(options: &LaneOptions, compute: impl Fn(&LaneOptions) -> LaneOutput) -> LaneOutput {
    lanes(options, 1, |_, options| vec![compute(options)]).remove(0)
}

/// Several such lanes, each with a factor of its own. `compute` gets the numbers of lanes and gives their outputs: first of
/// all of them, then of those that overflowed.
pub(super) fn lanes(
    options: &LaneOptions,
    count: usize,
    mut compute: impl FnMut(&[usize], &LaneOptions) -> Vec<LaneOutput>,
) -> Vec<LaneOutput> {
    let mut done: Vec<Option<LaneOutput>> = vec![None; count];
    let mut left: Vec<usize> = (0..count).collect();
    let mut factor = FIRST;
    while !left.is_empty() {
        let outputs = compute(&left, &LaneOptions { loss_scale: options.loss_scale * factor, ..*options });
        let mut again = Vec::new();
        for (lane, mut output) in left.into_iter().zip(outputs) {
            if factor > 1.0 && !output.gradient.iter().all(|value| value.is_finite()) {
                again.push(lane);
                continue;
            }
            output.loss /= factor;
            #[expect(clippy::cast_possible_truncation, reason = "a power of two")]
            let back = (1.0 / factor) as f32;
            output.gradient.iter_mut().for_each(|value| *value *= back);
            done[lane] = Some(output);
        }
        left = again;
        factor = (factor / STEP).max(1.0);
    }
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const OPTIONS: LaneOptions = LaneOptions { loss_scale: 0.25, step: 0, dropout: None, skip_layers: &[] };

    /// A lane whose gradient for a loss scale of 1 is this, in numbers that end at 65,504; and the scales it was asked for.
    fn run(gradient: f32) -> (LaneOutput, Vec<f64>) {
        let asked = RefCell::new(Vec::new());
        let output = lane(&OPTIONS, |options| {
            asked.borrow_mut().push(options.loss_scale);
            in_halves(gradient, options)
        });
        (output, asked.into_inner())
    }

    fn in_halves(gradient: f32, options: &LaneOptions) -> LaneOutput {
        #[expect(clippy::cast_possible_truncation, reason = "as the engine scales")]
        let scaled = (f64::from(gradient) * options.loss_scale) as f32;
        let scaled = if scaled.abs() > 65_504.0 { f32::INFINITY } else { scaled };
        LaneOutput { loss: 3.0 * options.loss_scale, gradient: vec![scaled, 0.0] }
    }

    #[test]
    fn each_lane_has_its_own_factor_and_only_those_that_overflow_are_computed_again() {
        let gradients = [7.5, 3e4, 1e-9, 100.0];
        let mut asked = Vec::new();
        let outputs = lanes(&OPTIONS, 4, |which, options| {
            asked.push(which.to_vec());
            which.iter().map(|&lane| in_halves(gradients[lane], options)).collect()
        });
        assert_eq!(asked, [vec![0, 1, 2, 3], vec![1, 3], vec![1], vec![1]]);
        assert_eq!(outputs, gradients.map(|gradient| run(gradient).0));
        assert!(lanes(&OPTIONS, 0, |_, _| unreachable!("there is no lane")).is_empty());
    }

    #[test]
    fn the_largest_factor_without_overflow_is_taken_and_taken_back() {
        for (gradient, passes) in [(1e-9, 1), (7.5, 1), (8.5, 2), (100.0, 2), (3e4, 4)] {
            let (output, asked) = run(gradient);
            assert_eq!(asked.len(), passes, "{gradient}: {asked:?}");
            assert_eq!(output, LaneOutput { loss: 0.75, gradient: vec![0.25 * gradient, 0.0] });
        }
    }

    #[test]
    fn what_overflows_without_a_factor_is_told_as_it_is() {
        let (output, asked) = run(3e8);
        assert_eq!(asked, [8192.0, 512.0, 32.0, 2.0, 0.25]);
        assert!(output.gradient[0].is_infinite() && (output.loss - 0.75).abs() < 1e-12);
    }
}
