//! The names that tensors and sub-folders of a release carry.

use std::collections::BTreeSet;

use graftwork_scheduler::{FusedSource, PlannedStage};
use graftwork_shared::{id::Name, job::Job, upload};

/// Names of the adapters that a fusion reads, in its order: what tasks publish as, and the own names of adapters from
/// outside, made legal and distinct.
pub(super) fn fused(job: &Job, stage: &PlannedStage) -> Vec<Name> {
    let mut taken = BTreeSet::from([stage.publish_as.clone()]);
    stage
        .fused
        .iter()
        .map(|source| {
            let wished = match source {
                FusedSource::Stage(name) => job.task(name).map_or(name.clone(), |task| task.publish_as.clone()),
                FusedSource::External { name, .. } => legal(name),
            };
            let name = distinct(&wished, &taken);
            taken.insert(name.clone());
            name
        })
        .collect()
}

/// The nearest name that can be part of tensor names and paths, and a module's name in Python's torch.
fn legal(text: &str) -> Name {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    let text: String = text.chars().map(plain).take(56).collect();
    let text = text.trim_start_matches(['_', '-']);
    let name: Name = text.parse().unwrap_or_else(|_| "adapter".parse().expect("a fixed name is a name"));
    if name.is_taken_in_torch() {
        return format!("{name}_adapter").parse().expect("a short name with a word behind it is a name");
    }
    name
}

fn distinct(wished: &Name, taken: &BTreeSet<Name>) -> Name {
    let numbered = |number: usize| {
        let start: String = wished.as_str().chars().take(60).collect();
        format!("{start}_{number}").parse::<Name>().expect("a name with a number behind it is a name")
    };
    if taken.contains(wished) {
        (2..usize::MAX)
            .map(numbered)
            .find(|name| !taken.contains(name))
            .expect("fewer names are taken than there are numbers")
    } else {
        wished.clone()
    }
}

/// What AdapterHub calls the base model: `organisation/name` of a hub, an address, or the name of a local folder.
/// A folder's path stands in no tensor file, configuration or card, so these do not depend on places; the record names
/// all places, because training again needs them.
pub(super) fn base_model(location: &str) -> String {
    if let Some(rest) = location.strip_prefix("hf://") {
        return rest.split('@').next().unwrap_or(rest).to_owned();
    }
    if let Some(name) = upload::name(location) {
        return name.to_owned();
    }
    if location.contains("://") && !location.starts_with("file://") {
        return location.to_owned();
    }
    location.trim_end_matches('/').rsplit('/').next().unwrap_or(location).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_made_legal_and_distinct() {
        assert_eq!(legal("AdapterHub/sst-2@ukp").as_str(), "AdapterHub_sst-2_ukp");
        assert_eq!(legal("..").as_str(), "adapter");
        assert_eq!(legal("half").as_str(), "half_adapter");
        let taken = BTreeSet::from(["spam".parse().unwrap(), "spam_2".parse().unwrap()]);
        assert_eq!(distinct(&"spam".parse().unwrap(), &taken).as_str(), "spam_3");
    }

    #[test]
    fn a_folder_is_named_without_its_place() {
        assert_eq!(base_model("/home/me/models/minilm/"), "minilm");
        assert_eq!(base_model(&upload::location(graftwork_shared::digest::Digest::of(b"list"), "minilm")), "minilm");
        assert_eq!(base_model("hf://lab/minilm@main"), "lab/minilm");
        assert_eq!(base_model("s3://bucket/minilm"), "s3://bucket/minilm");
    }
}
