//! What lies below the first adapter, kept from one pass over the rows to the next.
//!
//! Nothing there is trained, and a row's values depend on its tokens alone, whatever the lane or thread that computes
//! them, so keeping them changes no byte. They are found by the row's tokens themselves: by other epochs, by evaluations,
//! and on a [`Shelves`] by other stages over the same texts. Kept in memory up to a bound of bytes, then on a shelf; what
//! comes later is computed anew each time, since rows of an epoch come in turn and none is worth more than another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use graftwork_shared::digest::{Digest, Hasher};
use tch::{Device, Tensor};

use super::{Network, input::Input};
use crate::{
    host,
    shelf::{Shelves, Visit},
    sites::{Depth, LayerSites},
    spans::Spans,
};

/// How much of what lies below the first adapter a network may keep from one pass over its rows to the next.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Bytes in memory; 0 keeps nothing there.
    pub memory_bytes: u64,
    /// Where to keep what does not fit, with the digest of all that decides values below an adapter beside a row's
    /// tokens: the base model and the numeric class.
    pub shelves: Option<(Arc<Shelves>, Digest)>,
}

/// Bytes of memory that a network takes unless it is told otherwise: 40,000 tokens of a trunk 384 wide.
const MEMORY_BYTES: u64 = 256 << 20;

/// Where the first adapter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) layer: u32,
    /// At the end of the layer's feed-forward block: what is kept are its output and its input. Otherwise the layer's
    /// own input is kept.
    pub(super) at_end: bool,
}

impl Cut {
    /// `None` where there is nothing to gain.
    fn of(layers: &[LayerSites]) -> Option<Self> {
        let layer = layers.iter().position(LayerSites::any)?;
        // The last layer computes only what heads read, which is less than a row.
        let at_end = layers[layer].ends_alone() && layer + 1 < layers.len();
        (layer + usize::from(at_end) > 0).then_some(Self { layer: u32::try_from(layer).ok()?, at_end })
    }

    /// Whether whole layers lie below, so that keeping them pays without being asked for.
    fn pays(self) -> bool {
        self.layer > 0
    }
}

/// The rows that are kept.
pub(super) struct Below {
    pub(super) cut: Cut,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    memory_bytes: u64,
    memory_used: u64,
    rows: HashMap<Digest, Arc<[f32]>>,
    shelf: Option<Arc<Visit>>,
}

impl Below {
    pub(super) fn new(layers: &[LayerSites], device: Device) -> Option<Self> {
        let cut = Cut::of(layers).filter(|_| device == Device::Cpu)?;
        let memory_bytes = if cut.pays() { MEMORY_BYTES } else { 0 };
        Some(Self { cut, kept: Mutex::new(Kept { memory_bytes, ..Kept::default() }) })
    }

    /// Changes where rows are kept; those in memory are forgotten.
    pub(super) fn bound(&self, keep: &Keep) {
        let shelf = keep.shelves.as_ref().map(|(shelves, of)| {
            let Cut { layer, at_end } = self.cut;
            let key = Digest::of_value("graftwork values below adapters", &(of, layer, at_end));
            Arc::new(shelves.visit("below", &key))
        });
        *self.lock() = Kept { memory_bytes: keep.memory_bytes, shelf, ..Kept::default() };
    }

    /// Whether anything is kept at all.
    fn keeps(&self) -> bool {
        let kept = self.lock();
        kept.memory_bytes > 0 || kept.shelf.is_some()
    }

    /// The values of these rows where they are kept.
    fn find(&self, keys: &[Digest]) -> Vec<Option<Arc<[f32]>>> {
        let (mut rows, shelf): (Vec<Option<Arc<[f32]>>>, _) = {
            let kept = self.lock();
            (keys.iter().map(|key| kept.rows.get(key).cloned()).collect(), kept.shelf.clone())
        };
        if let Some(shelf) = shelf {
            for (row, key) in rows.iter_mut().zip(keys).filter(|(row, _)| row.is_none()) {
                *row = shelf.get(key).map(|bytes| floats(&bytes));
            }
        }
        rows
    }

    /// Keeps a row's values. A shelf takes rows that are expected to come again, or came before.
    fn keep(&self, key: Digest, values: &Arc<[f32]>, expected: bool) {
        let shelf = {
            let mut kept = self.lock();
            let bytes = (size_of::<Digest>() + size_of_val(&**values)) as u64;
            let fits = kept.memory_used + bytes <= kept.memory_bytes;
            if fits && expected {
                if kept.rows.insert(key, Arc::clone(values)).is_none() {
                    kept.memory_used += bytes;
                }
                return;
            }
            kept.shelf.clone()
        };
        let Some(shelf) = shelf else { return };
        if expected || shelf.was_missed(&key) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            shelf.put(&key, &bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn floats(bytes: &[u8]) -> Arc<[f32]> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

impl Network {
    /// The tensors at the cut for these rows, computed where they are not kept yet; `None` where nothing is kept and
    /// the rows are not repeated.
    pub(super) fn at_cut(&self, input: &Input) -> Option<(Cut, Vec<Tensor>)> {
        let below = self.below.as_ref()?;
        if !below.keeps() {
            // For all children of a `Parallel` at once.
            return (self.copies() > 1).then(|| (below.cut, self.compute_below(below.cut, input)));
        }
        let keys: Vec<Digest> = input.spans.0.iter().map(|span| key(input, span.start, span.length)).collect();
        let mut rows = below.find(&keys);
        let missing: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].is_none()).collect();
        if !missing.is_empty() {
            let part = input.of_rows(&missing);
            let computed = self.compute_below(below.cut, &part);
            for (&row, values) in missing.iter().zip(split(&computed, &part.spans)?) {
                below.keep(keys[row], &values, self.rows_return);
                rows[row] = Some(values);
            }
        }
        let rows: Vec<Arc<[f32]>> = rows.into_iter().flatten().collect();
        Some((below.cut, join(&rows, &input.spans, if below.cut.at_end { 2 } else { 1 })?))
    }

    fn compute_below(&self, cut: Cut, input: &Input) -> Vec<Tensor> {
        let mut x_td = self.embed(input, None);
        let frame = super::pass::Frame::whole(&input.spans, Depth::Nothing);
        for index in 0..cut.layer {
            x_td = self.layer_frame(index, &frame).forward(&x_td).0;
        }
        if cut.at_end { self.layer_frame(cut.layer, &frame).until_output_end(&x_td).0.into() } else { vec![x_td] }
    }
}

/// What a row is found by: its tokens, and how many there are.
fn key(input: &Input, start: usize, length: usize) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(&(length as u64).to_le_bytes());
    for ids in [&input.ids, &input.type_ids] {
        let bytes: Vec<u8> = ids[start..start + length].iter().flat_map(|id| id.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finish()
}

/// Each row's values, of one tensor after the other.
fn split(tensors: &[Tensor], spans: &Spans) -> Option<Vec<Arc<[f32]>>> {
    let parts = |tensor| {
        let width = host::sizes(tensor)[1];
        let values = host::values(tensor)?;
        Some(spans.0.iter().map(move |span| &values[span.start * width..(span.start + span.length) * width]))
    };
    match tensors {
        [only] => Some(parts(only)?.map(Arc::from).collect()),
        [first, second] => Some(parts(first)?.zip(parts(second)?).map(|(a, b)| [a, b].concat().into()).collect()),
        _ => None,
    }
}

/// The reverse of [`split`].
fn join(rows: &[Arc<[f32]>], spans: &Spans, count: usize) -> Option<Vec<Tensor>> {
    let tokens = spans.tokens();
    let width = rows.first()?.len() / (count * spans.0.first()?.length);
    let one = |number: usize| {
        let mut tensor = host::fresh([tokens, width]);
        let mut rest = host::values_mut(&mut tensor)?;
        for row in rows {
            let size = row.len() / count;
            let (place, behind) = rest.split_at_mut(size);
            place.copy_from_slice(&row[number * size..(number + 1) * size]);
            rest = behind;
        }
        Some(tensor)
    };
    (0..count).map(one).collect()
}
