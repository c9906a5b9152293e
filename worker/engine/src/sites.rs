//! Which adapter sites a layer has, and how far down a backward goes among them.

use std::collections::HashMap;

use graftwork_shared::id::Name;

use crate::{bottleneck::BottleneckSite, lora::LoraSite};

/// The sites of one layer; a place without an adapter of the composition has none.
#[derive(Default)]
pub(crate) struct LayerSites {
    pub(crate) query: Option<LoraSite>,
    pub(crate) key: Option<LoraSite>,
    pub(crate) value: Option<LoraSite>,
    pub(crate) attention_end: Option<BottleneckSite>,
    pub(crate) intermediate: Option<LoraSite>,
    pub(crate) output: Option<LoraSite>,
    pub(crate) output_end: Option<BottleneckSite>,
}

/// Places of sites within a layer, from the bottom up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Projections,
    AttentionEnd,
    Intermediate,
    Output,
    OutputEnd,
}

/// How far down the backward of a layer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Nothing in this layer or below is trained.
    Nothing,
    /// The lowest trained site is this one.
    DownTo(Rank),
    /// A lower layer has a trained site.
    Whole,
}

impl Depth {
    /// Whether a gradient arrives at the output of the site.
    pub(crate) fn reaches(self, rank: Rank) -> bool {
        self == Self::Whole || matches!(self, Self::DownTo(lowest) if rank >= lowest)
    }

    /// Whether a gradient is needed below the site.
    pub(crate) fn passes(self, rank: Rank) -> bool {
        self == Self::Whole || matches!(self, Self::DownTo(lowest) if rank > lowest)
    }
}

impl LayerSites {
    /// For each place, the adapters that serve there and how they stand in the block.
    pub(crate) fn standings(&self) -> Vec<HashMap<&Name, [bool; 4]>> {
        let loras = [&self.query, &self.key, &self.value, &self.intermediate, &self.output].into_iter().flatten();
        let loras = loras.map(|site| site.adapters.iter().map(|(name, _)| (name, [false; 4])).collect());
        let ends = [&self.attention_end, &self.output_end].into_iter().flatten();
        let ends = ends.map(|site| site.adapters.iter().map(|(name, weights)| (name, weights.standing())).collect());
        loras.chain(ends).collect()
    }

    /// The lowest site with a trained leaf.
    pub(crate) fn lowest_trained(&self) -> Option<Rank> {
        let lora = |site: &Option<LoraSite>| site.as_ref().is_some_and(|site| !site.leaves.is_empty());
        let end = |site: &Option<BottleneckSite>| site.as_ref().is_some_and(|site| !site.leaves.is_empty());
        let projections = lora(&self.query) || lora(&self.key) || lora(&self.value);
        [
            (projections, Rank::Projections),
            (end(&self.attention_end), Rank::AttentionEnd),
            (lora(&self.intermediate), Rank::Intermediate),
            (lora(&self.output), Rank::Output),
            (end(&self.output_end), Rank::OutputEnd),
        ]
        .into_iter()
        .find_map(|(trained, rank)| trained.then_some(rank))
    }

    /// Whether there is a site at all.
    pub(crate) fn any(&self) -> bool {
        let lora = [&self.query, &self.key, &self.value, &self.intermediate, &self.output];
        lora.into_iter().any(Option::is_some) || self.attention_end.is_some() || self.output_end.is_some()
    }

    /// Whether all that stands here stands at the end of the feed-forward block.
    pub(crate) fn ends_alone(&self) -> bool {
        let lora = [&self.query, &self.key, &self.value, &self.intermediate, &self.output];
        self.output_end.is_some() && self.attention_end.is_none() && lora.into_iter().all(Option::is_none)
    }

    /// Whether a gate averages over whole rows, so that no token may be left out.
    pub(crate) fn reads_whole_rows(&self) -> bool {
        let lora = [&self.query, &self.intermediate, &self.output];
        let ends = [&self.attention_end, &self.output_end];
        lora.into_iter().flatten().any(LoraSite::reads_whole_rows)
            || ends.into_iter().flatten().any(BottleneckSite::reads_whole_rows)
    }

    pub(crate) fn share(&self) -> Self {
        let lora = |site: &Option<LoraSite>| site.as_ref().map(LoraSite::share);
        let end = |site: &Option<BottleneckSite>| site.as_ref().map(BottleneckSite::share);
        Self {
            query: lora(&self.query),
            key: lora(&self.key),
            value: lora(&self.value),
            attention_end: end(&self.attention_end),
            intermediate: lora(&self.intermediate),
            output: lora(&self.output),
            output_end: end(&self.output_end),
        }
    }
}
