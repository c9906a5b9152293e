//! What lies below the first adapter, kept from one epoch to the next.
//!
//! Nothing there is trained, and a row's values depend on its tokens alone, whatever the lane or thread that computes
//! them, so keeping them changes no byte. They are found by the row's tokens themselves. Kept up to a bound of bytes;
//! what comes later is computed anew each time, since rows of an epoch come in turn and none is worth more than another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tch::{Device, Tensor};

use super::{Network, pass::Input};
use crate::{
    host,
    layer::{Depth, LayerSites},
    spans::Spans,
};

/// Bytes that a network keeps unless it is told otherwise: 40,000 tokens of a trunk 384 wide.
const BYTES: usize = 256 << 20;

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

struct Kept {
    most_bytes: usize,
    bytes: usize,
    rows: HashMap<Vec<i64>, Arc<[f32]>>,
}

impl Below {
    pub(super) fn new(layers: &[LayerSites], device: Device) -> Option<Self> {
        let cut = Cut::of(layers).filter(|_| device == Device::Cpu)?;
        let most_bytes = if cut.pays() { BYTES } else { 0 };
        Some(Self { cut, kept: Mutex::new(Kept { most_bytes, bytes: 0, rows: HashMap::new() }) })
    }

    /// Changes the bound; what was kept is forgotten.
    pub(super) fn bound(&self, most_bytes: usize) {
        *self.lock() = Kept { most_bytes, bytes: 0, rows: HashMap::new() };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn keep(&mut self, key: Vec<i64>, values: &Arc<[f32]>) {
        let bytes = size_of_val(key.as_slice()) + size_of_val(&**values);
        if self.bytes + bytes <= self.most_bytes && self.rows.insert(key, Arc::clone(values)).is_none() {
            self.bytes += bytes;
        }
    }
}

impl Network {
    /// The tensors at the cut for these rows, computed where they are not kept yet; `None` where nothing is kept.
    pub(super) fn at_cut(&self, input: &Input) -> Option<(Cut, Vec<Tensor>)> {
        let below = self.below.as_ref()?;
        let keys: Vec<Vec<i64>> = input.spans.0.iter().map(|span| key(input, span.start, span.length)).collect();
        let mut rows: Vec<Option<Arc<[f32]>>> = {
            let kept = below.lock();
            if kept.most_bytes == 0 {
                return None;
            }
            keys.iter().map(|key| kept.rows.get(key).cloned()).collect()
        };
        let missing: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].is_none()).collect();
        if !missing.is_empty() {
            let part = input.rows(&missing);
            let computed = self.compute_below(below.cut, &part);
            let computed = split(&computed, &part.spans)?;
            let mut kept = below.lock();
            for (&row, values) in missing.iter().zip(computed) {
                kept.keep(keys[row].clone(), &values);
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

fn key(input: &Input, start: usize, length: usize) -> Vec<i64> {
    let tokens = start..start + length;
    [&input.ids[tokens.clone()], &input.type_ids[tokens]].concat()
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
