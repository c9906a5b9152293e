//! Composition blocks: how rows travel through the tree of adapters at one site.
//!
//! The recursion follows the Python peer `adapters` 1.3.0, including that `Average` divides the weighted sum by the
//! number of children. It differs where the peer gives adapters other rows than they were trained on: there the first
//! child of `Parallel`, `BatchSplit`, `Split` and `Average` prepares the rows of all children and the last one ends
//! their block, and a `Stack` inside is prepared twice. Here each child's rows travel as if it stood alone, so children
//! may be of different methods, and one that has no module at a site leaves its rows to the trunk.

use graftwork_shared::{composition::Composition, id::Name};

use crate::{EngineError, spans::Spans};

/// One kind of adapter at one place of one layer.
pub(crate) trait Site {
    /// What travels through the tree.
    type State;

    /// Whether the adapter has a module here.
    fn holds(&self, adapter: &Name) -> bool;
    /// Prepares the state for an adapter that stands in no other block than a stack.
    fn before(&self, adapter: &Name, state: Self::State) -> Self::State;
    /// One adapter.
    fn single(&self, adapter: &Name, state: Self::State) -> Self::State;
    /// Fuses the children's results.
    fn fuse(&self, fuse: &Composition, state: Self::State) -> Self::State;
    /// Rows `from..to`.
    fn slice(&self, state: &Self::State, from: usize, to: usize) -> Self::State;
    /// Rows of all states, one state after the other.
    fn concat(&self, states: Vec<Self::State>) -> Self::State;
    /// Sum of the states times their weights, divided by their number.
    fn mean(&self, states: Vec<Self::State>, weights: &[f64]) -> Self::State;
    /// Tokens `from..to` of every row, and the indices where they lie in `state`.
    fn cut(&self, state: &Self::State, from: usize, to: usize) -> (Self::State, Vec<i64>);
    /// Puts cut tokens back to where they lay.
    fn join(&self, state: Self::State, parts: Vec<(Self::State, Vec<i64>)>) -> Self::State;
    /// A copy that shares its tensors.
    fn copy(&self, state: &Self::State) -> Self::State;
    /// Number of rows.
    fn rows(&self, state: &Self::State) -> usize;
}

/// The last adapter of a block that has a module at the site.
pub(crate) fn last_at<'a, S: Site>(site: &S, block: &'a Composition) -> Option<&'a Name> {
    block.adapters().into_iter().rfind(|adapter| site.holds(adapter))
}

/// Sends a state through a block. A block without a module at this site changes nothing.
pub(crate) fn compose<S: Site>(site: &S, block: &Composition, state: S::State) -> S::State {
    if !block.adapters().into_iter().any(|adapter| site.holds(adapter)) {
        return state;
    }
    match block {
        Composition::Single { adapter } => site.single(adapter, state),
        Composition::Stack { children } => children.iter().fold(state, |state, child| stacked(site, child, state)),
        Composition::Fuse { .. } => site.fuse(block, state),
        Composition::Parallel { children } => {
            let rows = site.rows(&state) / children.len();
            by_rows(site, &state, children, &vec![rows; children.len()])
        }
        Composition::BatchSplit { children, batch_sizes } => by_rows(site, &state, children, batch_sizes),
        Composition::Average { children, weights, normalize } => {
            let sum: f64 = if *normalize { weights.iter().sum() } else { 1.0 };
            // All children have a module here, which is checked when the network is built.
            let states = children.iter().map(|child| stacked(site, child, site.copy(&state))).collect();
            let weights: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
            site.mean(states, &weights)
        }
        Composition::Split { children, splits } => {
            let mut from = 0;
            let parts = children.iter().zip(splits).map(|(child, length)| {
                let (part, indices) = site.cut(&state, from, from + length);
                from += length;
                (stacked(site, child, part), indices)
            });
            let parts = parts.collect();
            site.join(state, parts)
        }
    }
}

/// A child of a `Stack`: single adapters are prepared here, blocks prepare themselves. A whole setup that is one
/// adapter counts as a stack of one.
pub(crate) fn stacked<S: Site>(site: &S, child: &Composition, state: S::State) -> S::State {
    match child {
        Composition::Single { adapter } if site.holds(adapter) => site.single(adapter, site.before(adapter, state)),
        block => compose(site, block, state),
    }
}

/// Each child serves its own rows, prepared for it alone, so children may be of different methods.
fn by_rows<S: Site>(site: &S, state: &S::State, children: &[Composition], rows: &[usize]) -> S::State {
    let mut from = 0;
    let parts = children.iter().zip(rows).map(|(child, rows)| {
        let part = site.slice(state, from, from + rows);
        from += rows;
        stacked(site, child, part)
    });
    let parts = parts.collect();
    site.concat(parts)
}

/// Checks that rows and their lengths fit every block of the tree. `spans` are the rows before any repetition.
pub(crate) fn check_rows(block: &Composition, spans: &Spans) -> Result<(), EngineError> {
    match block {
        Composition::BatchSplit { children, batch_sizes } => {
            let sum: usize = batch_sizes.iter().sum();
            if sum != spans.rows() {
                return Err(EngineError::Rows(format!(
                    "BatchSplit serves {sum} rows in runs of {batch_sizes:?}, but the batch has {} rows",
                    spans.rows()
                )));
            }
            let mut from = 0;
            for (child, rows) in children.iter().zip(batch_sizes) {
                check_rows(child, &spans.slice(from, from + rows).0)?;
                from += rows;
            }
        }
        Composition::Split { children, splits } => {
            spans.check_splits(splits)?;
            let mut from = 0;
            for (child, length) in children.iter().zip(splits) {
                check_rows(child, &spans.cut(from, from + length).0)?;
                from += length;
            }
        }
        block => {
            for child in block.children() {
                check_rows(child, spans)?;
            }
        }
    }
    Ok(())
}
