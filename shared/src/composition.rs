//! How adapters are combined in one forward pass: AdapterHub's composition blocks, and the table of legal nestings.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::Name;

/// A tree of adapters. Rows travel through it at every adapter site of the trunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Composition {
    /// One adapter.
    #[serde(rename = "single")]
    Single {
        /// The adapter.
        adapter: Name,
    },
    /// One after the other.
    Stack {
        /// In order of application.
        children: Vec<Composition>,
    },
    /// AdapterFusion: attention over the children's outputs.
    Fuse {
        /// What is fused.
        children: Vec<Composition>,
        /// The fusion layer's own name; by default the children's names joined by commas.
        name: Option<String>,
    },
    /// Each child serves the whole batch, which is repeated for it at the first adapter; one head each, losses summed.
    Parallel {
        /// One result each.
        children: Vec<Composition>,
    },
    /// The weighted mean of the children's outputs.
    Average {
        /// What is averaged.
        children: Vec<Composition>,
        /// One weight for each child.
        weights: Vec<f64>,
        /// Weights are divided by their sum.
        normalize: bool,
    },
    /// The sequence is cut into spans of tokens, one for each child.
    Split {
        /// One for each span.
        children: Vec<Composition>,
        /// Tokens of each span, counted from the start of each sequence.
        splits: Vec<usize>,
    },
    /// The batch is cut into runs of rows, one for each child, with a head each.
    BatchSplit {
        /// One for each run.
        children: Vec<Composition>,
        /// Rows of each run.
        batch_sizes: Vec<usize>,
    },
}

/// The kind of a composition block, as AdapterHub names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockKind {
    /// One adapter.
    #[serde(rename = "single")]
    Single,
    /// See [`Composition::Stack`].
    Stack,
    /// See [`Composition::Fuse`].
    Fuse,
    /// See [`Composition::Parallel`].
    Parallel,
    /// See [`Composition::Average`].
    Average,
    /// See [`Composition::Split`].
    Split,
    /// See [`Composition::BatchSplit`].
    BatchSplit,
}

impl BlockKind {
    /// Which blocks may stand directly inside this one.
    pub fn allowed_children(self) -> &'static [BlockKind] {
        use BlockKind::{Average, BatchSplit, Fuse, Parallel, Single, Split, Stack};
        match self {
            Single => &[],
            Stack => &[Single, Fuse, Split, Parallel, BatchSplit, Average],
            Fuse => &[Single, Stack],
            Split => &[Single, Split, Stack, BatchSplit, Average],
            BatchSplit => &[Single, Stack, Split, BatchSplit, Average],
            Parallel => &[Single, Stack, BatchSplit, Average],
            Average => &[Single, Stack, Split, BatchSplit],
        }
    }
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Single => "a single adapter",
            Self::Stack => "Stack",
            Self::Fuse => "Fuse",
            Self::Parallel => "Parallel",
            Self::Average => "Average",
            Self::Split => "Split",
            Self::BatchSplit => "BatchSplit",
        };
        f.write_str(name)
    }
}

/// Why a composition is not legal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CompositionError {
    /// A nesting that the table does not list.
    #[error("{child} cannot stand directly inside {parent}")]
    Nesting {
        /// The outer block.
        parent: BlockKind,
        /// The inner block.
        child: BlockKind,
    },
    /// A block without children.
    #[error("{0} has no children")]
    Empty(BlockKind),
    /// A list that must have one entry for each child has another length.
    #[error("{block} has {children} children but {given} {what}")]
    Count {
        /// The block.
        block: BlockKind,
        /// How many children it has.
        children: usize,
        /// How many entries were given.
        given: usize,
        /// What the entries are.
        what: &'static str,
    },
    /// Weights that cannot be normalised, or spans of no tokens or rows.
    #[error("{block}: {what}")]
    Value {
        /// The block.
        block: BlockKind,
        /// What is wrong.
        what: &'static str,
    },
}

impl Composition {
    /// One adapter.
    pub fn single(adapter: Name) -> Self {
        Self::Single { adapter }
    }

    /// The kind of the outermost block.
    pub fn kind(&self) -> BlockKind {
        match self {
            Self::Single { .. } => BlockKind::Single,
            Self::Stack { .. } => BlockKind::Stack,
            Self::Fuse { .. } => BlockKind::Fuse,
            Self::Parallel { .. } => BlockKind::Parallel,
            Self::Average { .. } => BlockKind::Average,
            Self::Split { .. } => BlockKind::Split,
            Self::BatchSplit { .. } => BlockKind::BatchSplit,
        }
    }

    /// The blocks directly inside.
    pub fn children(&self) -> &[Composition] {
        match self {
            Self::Single { .. } => &[],
            Self::Stack { children }
            | Self::Fuse { children, .. }
            | Self::Parallel { children }
            | Self::Average { children, .. }
            | Self::Split { children, .. }
            | Self::BatchSplit { children, .. } => children,
        }
    }

    /// All adapters from left to right; one that stands twice is listed twice.
    pub fn adapters(&self) -> Vec<&Name> {
        match self {
            Self::Single { adapter } => vec![adapter],
            block => block.children().iter().flat_map(Self::adapters).collect(),
        }
    }

    /// The name under which AdapterHub stores this fusion's layer; `None` for other blocks.
    pub fn fusion_name(&self) -> Option<String> {
        let Self::Fuse { children, name } = self else { return None };
        let joined = || {
            let last = children.iter().filter_map(|child| child.adapters().last().map(ToString::to_string));
            last.collect::<Vec<_>>().join(",")
        };
        Some(name.clone().unwrap_or_else(joined))
    }

    /// Checks nestings, lengths and values of the whole tree.
    pub fn check(&self) -> Result<(), CompositionError> {
        let block = self.kind();
        let children = self.children();
        if block != BlockKind::Single && children.is_empty() {
            return Err(CompositionError::Empty(block));
        }
        let count = |given: usize, what| {
            if given == children.len() {
                Ok(())
            } else {
                Err(CompositionError::Count { block, children: children.len(), given, what })
            }
        };
        match self {
            Self::Average { weights, normalize, .. } => {
                count(weights.len(), "weights")?;
                let sum: f64 = weights.iter().sum();
                if !weights.iter().all(|w| w.is_finite()) || (*normalize && sum.abs() < 1e-12) {
                    return Err(CompositionError::Value {
                        block,
                        what: "weights must be finite and their sum not zero",
                    });
                }
            }
            Self::Split { splits, .. } => {
                count(splits.len(), "splits")?;
                if splits.contains(&0) {
                    return Err(CompositionError::Value { block, what: "a span of 0 tokens" });
                }
            }
            Self::BatchSplit { batch_sizes, .. } => {
                count(batch_sizes.len(), "batch sizes")?;
                if batch_sizes.contains(&0) {
                    return Err(CompositionError::Value { block, what: "a run of 0 rows" });
                }
            }
            _ => {}
        }
        for child in children {
            if !block.allowed_children().contains(&child.kind()) {
                return Err(CompositionError::Nesting { parent: block, child: child.kind() });
            }
            child.check()?;
        }
        Ok(())
    }
}

impl fmt::Display for Composition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Single { adapter } = self {
            return write!(f, "{adapter}");
        }
        let inner: Vec<String> = self.children().iter().map(ToString::to_string).collect();
        write!(f, "{}[{}]", self.kind(), inner.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(name: &str) -> Composition {
        Composition::single(name.parse().unwrap())
    }

    #[test]
    fn nestings_follow_the_table() {
        let fuse = Composition::Fuse { children: vec![single("a"), single("b")], name: None };
        let stack = Composition::Stack { children: vec![single("c"), fuse.clone()] };
        assert_eq!(stack.check(), Ok(()));
        let wrong = Composition::Fuse { children: vec![fuse.clone()], name: None };
        assert_eq!(wrong.check(), Err(CompositionError::Nesting { parent: BlockKind::Fuse, child: BlockKind::Fuse }));
        assert_eq!(fuse.fusion_name().unwrap(), "a,b");
        assert_eq!(stack.to_string(), "Stack[c, Fuse[a, b]]");
    }

    #[test]
    fn a_split_needs_one_span_for_each_child() {
        let split = Composition::Split { children: vec![single("a"), single("b")], splits: vec![3] };
        assert!(matches!(split.check(), Err(CompositionError::Count { given: 1, .. })));
    }
}
