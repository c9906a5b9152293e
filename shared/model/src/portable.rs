//! In which order AdapterHub's Python library can read the adapters of a fusion.

use graftwork_shared::adapter::{AdapterConfig, Bottleneck};

/// Positions of fused adapters in an order in which AdapterHub's Python library computes what the given order says; the
/// given order itself where it serves. `None` when there is none.
///
/// In every layer in which some adapter of a fusion stands, the library (`adapters` 1.3.0, `compose_fuse`) asks the last
/// one how the fusion stands in its block, and fails where that one has no module (`leave_out`). So the last one must
/// stand wherever another one does, and stand like the one that decides by the given order: the last that has a module
/// in the layer. Attention knows no order, so all others may stand anywhere.
pub fn portable_order(adapters: &[&AdapterConfig], layers: u32) -> Option<Vec<usize>> {
    let serves = |last: usize| {
        (0..layers).all(|layer| {
            let deciding = adapters.iter().rfind(|adapter| stands(adapter, layer));
            deciding
                .is_none_or(|deciding| stands(adapters[last], layer) && standing(adapters[last]) == standing(deciding))
        })
    };
    let last = (0..adapters.len()).rev().find(|last| serves(*last))?;
    Some((0..adapters.len()).filter(|position| *position != last).chain([last]).collect())
}

fn stands(adapter: &AdapterConfig, layer: u32) -> bool {
    !adapter.leave_out().contains(&layer)
}

/// How a bottleneck stands in its block: which input it reads, and where residual and layer norm are applied.
fn standing(adapter: &AdapterConfig) -> Option<[bool; 4]> {
    let AdapterConfig::Bottleneck(config) = adapter else { return None };
    let Bottleneck { is_parallel, original_ln_before, residual_before_ln, original_ln_after, .. } = config;
    Some([*is_parallel, *original_ln_before, *residual_before_ln, *original_ln_after])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(preset: &str, leave_out: &[u32]) -> AdapterConfig {
        let mut config = AdapterConfig::preset(preset).unwrap();
        if let AdapterConfig::Bottleneck(options) = &mut config {
            options.leave_out = leave_out.to_vec();
        }
        config
    }

    fn order(adapters: &[AdapterConfig]) -> Option<Vec<usize>> {
        portable_order(&adapters.iter().collect::<Vec<_>>(), 3)
    }

    #[test]
    fn an_adapter_that_stands_wherever_another_does_is_put_last() {
        let seq = |leave_out: &[u32]| adapter("seq_bn", leave_out);
        assert_eq!(order(&[seq(&[]), seq(&[])]), Some(vec![0, 1]));
        assert_eq!(order(&[seq(&[0]), seq(&[0])]), Some(vec![0, 1]), "nobody stands in layer 0");
        assert_eq!(order(&[seq(&[0]), seq(&[])]), Some(vec![0, 1]));
        assert_eq!(order(&[seq(&[]), seq(&[0])]), Some(vec![1, 0]));
        assert_eq!(order(&[seq(&[1]), seq(&[1, 2]), seq(&[0, 1])]), Some(vec![1, 2, 0]));
        assert_eq!(order(&[seq(&[0]), seq(&[1])]), None, "each lacks a layer of the other");
    }

    #[test]
    fn an_adapter_that_stands_otherwise_cannot_decide_for_another() {
        let (seq, double) = (adapter("seq_bn", &[]), adapter("double_seq_bn", &[0]));
        assert_eq!(order(&[seq.clone(), double.clone()]), None);
        assert_eq!(order(&[double, seq]), Some(vec![0, 1]));
    }
}
