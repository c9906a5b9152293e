//! Renaming adapters, fusions and heads inside tensor names.
//!
//! A name is exchanged only where a name stands: as the whole component behind `adapters`, `loras`,
//! `adapter_fusion_layer`, `heads` and their kin. An adapter called `a` never touches `a2`, one called `output` never
//! touches the trunk's own components, and fusion names may contain commas.

use std::collections::BTreeMap;

use crate::{error::ModelError, tensor::Tensors};

/// Components behind which a name stands.
const CONTAINERS: [&str; 9] = [
    "adapters",
    "loras",
    "adapter_fusion_layer",
    "heads",
    "invertible_adapters",
    "prefix_tunings",
    "prefix_gates",
    "shared_parameters",
    "refts",
];

/// Renames the adapter, fusion or head `from` to `to`. A tensor that already has a new name is replaced; use
/// [`rename_all`] to have that refused, and to exchange several names at once.
pub fn rename(tensors: Tensors, from: &str, to: &str) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (rename_tensor(&name, |n| (n == from).then_some(to)), tensor)).collect()
}

/// Renames several adapters, fusions or heads at once, so that names may be exchanged.
///
/// # Errors
/// When two tensors would have the same name.
pub fn rename_all(tensors: Tensors, names: &BTreeMap<String, String>) -> Result<Tensors, ModelError> {
    let mut renamed = Tensors::new();
    for (name, tensor) in tensors {
        let new = rename_tensor(&name, |n| names.get(n).map(String::as_str));
        if renamed.contains_key(&new) {
            return Err(ModelError::Options(format!(
                "two tensors would be called \"{new}\" after renaming \"{name}\""
            )));
        }
        renamed.insert(new, tensor);
    }
    Ok(renamed)
}

/// A tensor's name with the adapter's, fusion's or head's name exchanged.
pub(crate) fn rename_tensor<'a>(tensor: &str, new_name: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut behind_container = false;
    let components = tensor.split('.').map(|component| {
        let new = if behind_container { new_name(component) } else { None };
        behind_container = !behind_container && CONTAINERS.contains(&component);
        new.unwrap_or(component)
    });
    components.collect::<Vec<_>>().join(".")
}

/// The adapter's, fusion's or head's name inside a tensor's name.
pub(crate) fn owner(tensor: &str) -> Option<&str> {
    let mut components = tensor.split('.');
    components.by_ref().find(|component| CONTAINERS.contains(component))?;
    components.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::HostTensor;

    fn renamed(name: &str, from: &str, to: &str) -> String {
        let tensors = Tensors::from([(name.to_owned(), HostTensor::zeros(vec![1]))]);
        rename(tensors, from, to).into_keys().next().unwrap()
    }

    #[test]
    fn only_whole_names_behind_a_container_are_exchanged() {
        let a2 = "bert.encoder.layer.0.output.adapters.a2.adapter_up.bias";
        assert_eq!(renamed(a2, "a", "b"), a2);
        assert_eq!(renamed(a2, "a2", "b"), "bert.encoder.layer.0.output.adapters.b.adapter_up.bias");
        let output = "bert.encoder.layer.0.output.adapters.output.adapter_up.bias";
        assert_eq!(renamed(output, "output", "x"), "bert.encoder.layer.0.output.adapters.x.adapter_up.bias");
        assert_eq!(renamed("heads.1.1.weight", "1", "x"), "heads.x.1.weight");
        assert_eq!(renamed("heads.heads.1.weight", "heads", "x"), "heads.x.1.weight");
        let fusion = "bert.encoder.layer.1.output.adapter_fusion_layer.slot0,slot1.key.bias";
        assert_eq!(renamed(fusion, "slot0", "x"), fusion);
        assert_eq!(renamed(fusion, "slot0,slot1", "f"), "bert.encoder.layer.1.output.adapter_fusion_layer.f.key.bias");
        let lora = "bert.encoder.layer.1.attention.self.query.loras.query.lora_A";
        assert_eq!(renamed(lora, "query", "q"), "bert.encoder.layer.1.attention.self.query.loras.q.lora_A");
    }

    #[test]
    fn names_can_be_exchanged_but_not_merged() {
        let tensor = |value: f32| HostTensor { shape: vec![1], values: vec![value] };
        let tensors = Tensors::from([("heads.a.1.bias".into(), tensor(1.0)), ("heads.b.1.bias".into(), tensor(2.0))]);
        let swap = BTreeMap::from([("a".into(), "b".into()), ("b".into(), "a".into())]);
        assert_eq!(rename_all(tensors.clone(), &swap).unwrap()["heads.a.1.bias"].values, [2.0]);
        let merge = BTreeMap::from([("a".into(), "b".into())]);
        assert!(rename_all(tensors, &merge).unwrap_err().to_string().contains("two tensors"));
    }

    #[test]
    fn the_owner_of_a_tensor_is_found() {
        assert_eq!(owner("bert.encoder.layer.1.output.adapter_fusion_layer.a,b.key.bias"), Some("a,b"));
        assert_eq!(owner("heads.h.1.bias"), Some("h"));
        assert_eq!(owner("bert.pooler.dense.bias"), None);
    }
}
