//! What happens to the summed gradient before the optimizer sees it: fusion's regulariser, the norm, the cut.
//!
//! Plain loops over the flat buffer in one fixed order, so no thread can change a byte.

use std::ops::Range;

use crate::{EngineError, Layout, Setup, kernel::vectorised};

/// Weight of fusion's regulariser (Pfeiffer et al. 2021), as in AdapterHub.
const FUSION_PENALTY: f64 = 0.01;

/// A fusion layer's value matrix in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueMatrix {
    range: Range<usize>,
    size: usize,
}

/// The value matrices that are pulled towards identity: those of trained fusions with `regularization` on.
pub(crate) fn value_matrices(layout: &Layout, setup: &Setup) -> Result<Vec<ValueMatrix>, EngineError> {
    let regularised = setup.fusions.iter().filter(|(_, config)| config.regularization && config.value);
    let endings: Vec<String> =
        regularised.map(|(name, _)| format!(".adapter_fusion_layer.{name}.value.weight")).collect();
    let mut matrices = Vec::new();
    for tensor in layout.tensors.iter().filter(|tensor| endings.iter().any(|ending| tensor.name.ends_with(ending))) {
        let (name, found) = (tensor.name.clone(), tensor.shape.clone());
        let [size, columns] = found[..] else {
            return Err(EngineError::Shape { name, found, expected: vec![0, 0] });
        };
        if size != columns {
            return Err(EngineError::Shape { name, found, expected: vec![size, size] });
        }
        matrices.push(ValueMatrix { range: tensor.offset..tensor.offset + tensor.elements(), size });
    }
    Ok(matrices)
}

/// Adds the gradient of `0.01 · ‖I − V‖²` of every matrix and returns the penalties' sum.
///
/// It belongs to the loss of this update. AdapterHub's own trainer reads the penalty after its optimizer stepped, so
/// there each update carries the penalty's gradient of the update before.
pub(crate) fn add_fusion_penalty(matrices: &[ValueMatrix], parameters: &[f32], gradient: &mut [f32]) -> f64 {
    let mut penalty = 0.0;
    for matrix in matrices {
        let rows = parameters[matrix.range.clone()].chunks_exact(matrix.size);
        let rows = rows.zip(gradient[matrix.range.clone()].chunks_exact_mut(matrix.size));
        for (row, (values, gradient)) in rows.enumerate() {
            for (column, (&value, gradient)) in values.iter().zip(gradient).enumerate() {
                let distance = if row == column { f64::from(value) - 1.0 } else { f64::from(value) };
                penalty += distance * distance;
                #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
                let pull = (2.0 * FUSION_PENALTY * distance) as f32;
                *gradient += pull;
            }
        }
    }
    FUSION_PENALTY * penalty
}

/// The norm over all trained numbers. Eight sums run side by side, so that the loop can use vector instructions.
pub(crate) fn norm(gradient: &[f32]) -> f64 {
    let mut squares = [0.0; SIDE_BY_SIDE];
    add_squares(gradient, &mut squares);
    squares.iter().sum::<f64>().sqrt()
}

const SIDE_BY_SIDE: usize = 8;

vectorised! {
    fn add_squares(gradient: &[f32], squares: &mut [f64; SIDE_BY_SIDE]) {
        let (chunks, rest) = gradient.as_chunks::<SIDE_BY_SIDE>();
        let mut sums = *squares;
        for chunk in chunks {
            for (square, &value) in sums.iter_mut().zip(chunk) {
                *square += f64::from(value) * f64::from(value);
            }
        }
        for (square, &value) in sums.iter_mut().zip(rest) {
            *square += f64::from(value) * f64::from(value);
        }
        *squares = sums;
    }
}

/// Scales the gradient so that its norm is at most `limit`, as `torch.nn.utils.clip_grad_norm_` does: by
/// `limit / (norm + 1e-6)`, never by more than 1.
pub(crate) fn clip(gradient: &mut [f32], norm: f64, limit: f64) {
    let factor = limit / (norm + 1e-6);
    if factor < 1.0 {
        #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
        let factor = factor as f32;
        for value in gradient {
            *value *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use graftwork_shared::adapter::FusionConfig;
    use proptest::prelude::*;

    use super::*;
    use crate::{TrainedTensor, kernel::Instructions, testing::cases};

    fn layout(names: &[(&str, &[usize])]) -> Layout {
        let mut layout = Layout::default();
        for (name, shape) in names {
            let shape = shape.to_vec();
            let tensor = TrainedTensor { name: (*name).to_owned(), offset: layout.len, decays: true, shape };
            layout.len += tensor.elements();
            layout.tensors.push(tensor);
        }
        layout
    }

    fn setup(regularization: bool) -> Setup {
        let config = FusionConfig { regularization, ..FusionConfig::default() };
        Setup { fusions: [("trained".to_owned(), config)].into(), ..Setup::default() }
    }

    #[test]
    fn the_penalty_pulls_value_matrices_alone_towards_identity() {
        let value = "bert.encoder.layer.0.output.adapter_fusion_layer.trained.value.weight";
        let layout = layout(&[("a.adapter_fusion_layer.trained.key.weight", &[2, 2]), (value, &[2, 2])]);
        let matrices = value_matrices(&layout, &setup(true)).unwrap();
        let parameters = [9.0, 9.0, 9.0, 9.0, 1.5, 0.5, 0.0, 1.0];
        let mut gradient = [1.0; 8];
        let penalty = add_fusion_penalty(&matrices, &parameters, &mut gradient);
        assert!((penalty - 0.01 * 0.5).abs() < 1e-15);
        assert_eq!(gradient.map(f32::to_bits), [1.0, 1.0, 1.0, 1.0, 1.01, 1.01, 1.0, 1.0].map(f32::to_bits));
        assert!(value_matrices(&layout, &setup(false)).unwrap().is_empty());
    }

    #[test]
    fn a_value_matrix_that_is_not_square_is_an_error() {
        let layout = layout(&[("a.adapter_fusion_layer.trained.value.weight", &[2, 3])]);
        assert!(matches!(value_matrices(&layout, &setup(true)), Err(EngineError::Shape { .. })));
    }

    // torch 2.11: clip_grad_norm_([3, 4], 1.0) gives [0.59999988, 0.79999984]; [0.3, 0.4] stays.
    #[test]
    fn the_cut_is_that_of_torch() {
        let mut gradient = [3.0, 4.0];
        assert!((norm(&gradient) - 5.0).abs() < 1e-12);
        clip(&mut gradient, 5.0, 1.0);
        assert!((gradient[0] - 0.599_999_9).abs() < 1e-7 && (gradient[1] - 0.799_999_84).abs() < 1e-7, "{gradient:?}");
        let mut small = [0.3, 0.4];
        clip(&mut small, 0.5, 1.0);
        assert_eq!(small.map(f32::to_bits), [0.3, 0.4].map(f32::to_bits));
    }

    #[test]
    fn the_norm_counts_a_ragged_end() {
        assert!((norm(&[1.0; 19]) - 19.0_f64.sqrt()).abs() < 1e-12);
        assert!(norm(&[f32::NAN, 1.0]).is_nan());
    }

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn the_norm_of_any_gradient_is_that_of_its_numbers(
            gradient in prop::collection::vec((-1.0..1.0_f32, -40..40), 0..100),
        ) {
            let of = |&(digits, exponent): &(f32, i32)| digits * 2.0_f32.powi(exponent);
            let gradient: Vec<f32> = gradient.iter().map(of).collect();
            let expected = gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let found = Instructions::same(|| norm(&gradient));
            prop_assert!((found - expected).abs() <= 1e-13 * expected, "{} {}", found, expected);
        }
    }
}
