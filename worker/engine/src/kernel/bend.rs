//! Activations with their slopes, so that the backward is one multiplication.

use super::vectorised;

/// Which activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bend {
    Linear,
    Relu,
    /// With a slope of 0.01 below 0.
    LeakyRelu,
    /// With the error function.
    Gelu,
    /// With tanh in place of the error function.
    GeluNew,
    Silu,
    Tanh,
}

impl Bend {
    /// Puts f(x) in the place of x, and the slope of f at x into `slope`.
    pub(crate) fn with_slope(self, values: &mut [f32], slope: &mut [f32]) {
        assert_eq!(values.len(), slope.len(), "each value has a slope");
        match self {
            Self::Linear => slope.fill(1.0),
            Self::Relu => relu(values, slope),
            Self::LeakyRelu => leaky_relu(values, slope),
            Self::Gelu => gelu(values, slope),
            Self::GeluNew => gelu_new(values, slope),
            Self::Silu => silu(values, slope),
            Self::Tanh => tanh(values, slope),
        }
    }
}

impl Bend {
    /// Puts f(x) in the place of x: the same bytes, without a slope.
    pub(crate) fn alone(self, values: &mut [f32]) {
        match self {
            Self::Linear => {}
            Self::Relu => relu_alone(values),
            Self::LeakyRelu => leaky_relu_alone(values),
            Self::Gelu => gelu_alone(values),
            Self::GeluNew => gelu_new_alone(values),
            Self::Silu => silu_alone(values),
            Self::Tanh => tanh_alone(values),
        }
    }
}

macro_rules! bend {
    ($name:ident, $alone:ident, $f:expr) => {
        vectorised! {
            fn $name(values: &mut [f32], slope: &mut [f32]) {
                for (value, slope) in values.iter_mut().zip(slope) {
                    (*value, *slope) = $f(*value);
                }
            }
        }
        vectorised! {
            fn $alone(values: &mut [f32]) {
                values.iter_mut().for_each(|value| *value = $f(*value).0);
            }
        }
    };
}

bend!(relu, relu_alone, |x: f32| if x > 0.0 { (x, 1.0) } else { (if x.is_nan() { x } else { 0.0 }, 0.0) });
bend!(leaky_relu, leaky_relu_alone, |x: f32| if x > 0.0 { (x, 1.0) } else { (0.01 * x, 0.01) });
bend!(gelu, gelu_alone, |x: f32| {
    let below = lower_tail(x);
    (x * below, below + x * exponential(-0.5 * x * x) * FACTOR_OF_DENSITY)
});
bend!(gelu_new, gelu_new_alone, |x: f32| {
    let gate = sigmoid(TWICE_ROOT * x * (1.0 + CUBE * x * x));
    (x * gate, gate + x * gate * (1.0 - gate) * TWICE_ROOT * (1.0 + 3.0 * CUBE * x * x))
});
bend!(silu, silu_alone, |x: f32| {
    let gate = sigmoid(x);
    (x * gate, gate * (1.0 + x * (1.0 - gate)))
});
bend!(tanh, tanh_alone, |x: f32| {
    // The difference has no digits left near 0; the first terms of the series have all of them there.
    let y = x * x;
    let near = x * (1.0 + y * (-1.0 / 3.0 + y * (2.0 / 15.0 + y * (-17.0 / 315.0 + y * (62.0 / 2835.0)))));
    let far = 2.0 * sigmoid(2.0 * x) - 1.0;
    let value = if x.abs() < 0.25 { near } else { far };
    (value, 1.0 - value * value)
});

/// 1 / √(2π).
const FACTOR_OF_DENSITY: f32 = 0.398_942_3;
/// 2 √(2/π) and the factor of the cube in tanh-GELU.
const TWICE_ROOT: f32 = 1.595_769;
const CUBE: f32 = 0.044_715;

/// Share of a standard normal distribution below `x`, within 2e-7.
///
/// Above ½ it is x P(x²) / Q(x²), both of degree 5, fitted to |x| ≤ 5.3 with the largest error made small (4e-9 before
/// rounding); beyond, 0 or 1, which is right to 6e-8. Far below 0 the share is right absolutely, not in its digits. No
/// exponential, since forward passes alone need none.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn lower_tail(x: f32) -> f32 {
    let y = x * x;
    let p = ((((2.405_027_3e-8 * y + 6.379_076_7e-6) * y + 1.603_354_9e-4) * y + 4.627_999_4e-3) * y + 0.032_935_87)
        * y
        + 0.398_942_26;
    let q =
        ((((1.237_168_7e-6 * y + 7.135_269e-5) * y + 1.836_577e-3) * y + 0.028_138_874) * y + 0.249_224_22) * y + 1.0;
    let above = x * p / q;
    0.5 + if x > 5.3 {
        0.5
    } else if x < -5.3 {
        -0.5
    } else {
        above
    }
}

/// 1 / (1 + e^−x).
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn sigmoid(x: f32) -> f32 {
    let small = exponential(-x.abs());
    let part = 1.0 / (1.0 + small);
    if x > 0.0 { part } else { small * part }
}

/// eˣ for x ≤ 0 within 2 units in the last place (Cephes' polynomial on ±½ ln 2), without branches, so that it
/// vectorises. Below −87 it stays at e⁻⁸⁷; NaN stays NaN.
#[inline(always)]
#[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "the constants as Cephes has them")]
pub(crate) fn exponential(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to a whole number that stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * 0.693359375 + whole * 2.12194440e-4;
    let p = ((((1.9875691500e-4 * r + 1.3981999507e-3) * r + 8.3334519073e-3) * r + 4.1665795894e-2) * r
        + 1.6666665459e-1)
        * r
        + 5.0000001201e-1;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{kernel::Instructions, testing::cases};

    #[test]
    fn the_exponential_is_as_good_as_the_librarys() {
        for step in 0..87_000_u32 {
            let x = -(step as f32) / 1000.0;
            let (found, expected) = (f64::from(exponential(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 3e-7, "{x}: {found} {expected}");
        }
        assert!((exponential(0.0) - 1.0).abs() < f32::EPSILON && exponential(f32::NAN).is_nan());
    }

    /// Share of a standard normal distribution below `x`, by its series.
    fn below(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..400 {
            term *= x * x / (2.0 * f64::from(n) + 1.0);
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    }

    type Function = fn(f64) -> f64;

    fn gate(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    const DEFINITIONS: [(Bend, Function); 7] = [
        (Bend::Linear, |x| x),
        (Bend::Relu, |x| x.max(0.0)),
        (Bend::LeakyRelu, |x| if x > 0.0 { x } else { 0.01 * x }),
        (Bend::Gelu, |x| x * below(x)),
        (Bend::GeluNew, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }),
        (Bend::Silu, |x| x * gate(x)),
        (Bend::Tanh, f64::tanh),
    ];

    /// Values and slopes beside f64.
    fn check((bend, f): (Bend, Function), inputs: &[f32]) {
        let (mut values, mut slopes, mut alone) = (inputs.to_vec(), vec![9.0; inputs.len()], inputs.to_vec());
        bend.with_slope(&mut values, &mut slopes);
        bend.alone(&mut alone);
        assert_eq!(alone, values);
        for (&x, (value, slope)) in inputs.iter().zip(values.iter().zip(&slopes)) {
            let x = f64::from(x);
            let rise = (f(x + 1e-6) - f(x - 1e-6)) / 2e-6;
            let far = [f64::from(*value) - f(x), f64::from(*slope) - rise].map(f64::abs);
            assert!(far[0] < 4e-7 * (1.0 + x.abs()) && far[1] < 2e-6, "{bend:?} {x} {far:?}");
        }
    }

    #[test]
    fn activations_and_slopes_are_those_of_their_definitions() {
        let inputs: Vec<f32> = (-9_000..9_000_i16).map(|step| (f32::from(step) + 0.5) / 1000.0).collect();
        for definition in DEFINITIONS {
            check(definition, &inputs);
        }
    }

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn rows_of_any_length_are_bent_alike_by_all_instructions(
            inputs in prop::collection::vec((1.0..2.0_f32, -14..4, any::<bool>()), 1..70),
        ) {
            // Numbers of every size, none as near to 0 as a difference is wide.
            let of = |&(digits, exponent, negative): &(f32, i32, bool)| {
                let size = digits * 2.0_f32.powi(exponent);
                if negative { -size } else { size }
            };
            let inputs: Vec<f32> = inputs.iter().map(of).collect();
            for definition in DEFINITIONS {
                check(definition, &inputs);
                let (values, slopes) = Instructions::same(|| {
                    let (mut values, mut slopes) = (inputs.clone(), inputs.clone());
                    definition.0.with_slope(&mut values, &mut slopes);
                    (values, slopes)
                });
                for (place, &x) in inputs.iter().enumerate() {
                    let (mut value, mut slope) = ([x], [9.0]);
                    definition.0.with_slope(&mut value, &mut slope);
                    prop_assert_eq!((value[0], slope[0]), (values[place], slopes[place]));
                }
            }
        }
    }

    #[test]
    fn tanh_keeps_its_digits_near_zero() {
        for exponent in -7..=0 {
            for x in [0.9, 0.3].map(|digit| digit * 10_f32.powi(exponent)) {
                let mut value = [x, -x];
                Bend::Tanh.alone(&mut value);
                let expected = f64::from(x).tanh();
                assert!((f64::from(value[0]) / expected - 1.0).abs() < 6e-7, "{x}");
                assert!(x >= 0.25 || value[1].to_bits() == (-value[0]).to_bits(), "{x}");
            }
        }
    }
}
