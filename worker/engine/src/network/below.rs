//! What lies below the first adapter, kept from one epoch to the next.
//!
//! Nothing there is trained, and a row's values depend on its tokens alone, whatever the lane or thread that computes
//! them, so keeping them changes no byte. They are found by the row's tokens themselves. Kept in memory up to a bound of
//! bytes, then in a file without a name up to another; what comes later is computed anew each time, since rows of an
//! epoch come in turn and none is worth more than another. A file that cannot be written or read is as good as none.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tch::{Device, Tensor};

use super::{Network, pass::Input};
use crate::{
    host,
    layer::{Depth, LayerSites},
    spans::Spans,
};

/// How much of what lies below the first adapter a network may keep from one epoch to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Bytes in memory; 0 keeps nothing there.
    pub memory_bytes: u64,
    /// A folder for what does not fit, and how many bytes may lie in it. The file has no name and ends with the network.
    pub folder: Option<(PathBuf, u64)>,
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
    memory: Bound,
    disk: Bound,
    file: Option<Arc<File>>,
    rows: HashMap<Vec<i64>, Place>,
}

/// Bytes that are used, and the most that may be.
#[derive(Clone, Copy, Default)]
struct Bound {
    used: u64,
    most: u64,
}

/// Where a row's values lie.
#[derive(Clone)]
enum Place {
    Memory(Arc<[f32]>),
    /// Floats from this byte of the file on.
    Disk(Arc<File>, u64, usize),
}

impl Bound {
    /// Takes so many bytes, if they are there, and says where they begin.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let first = self.used;
        (first + bytes <= self.most).then(|| {
            self.used += bytes;
            first
        })
    }
}

impl Below {
    pub(super) fn new(layers: &[LayerSites], device: Device) -> Option<Self> {
        let cut = Cut::of(layers).filter(|_| device == Device::Cpu)?;
        let most = if cut.pays() { MEMORY_BYTES } else { 0 };
        let kept = Kept { memory: Bound { used: 0, most }, ..Kept::default() };
        Some(Self { cut, kept: Mutex::new(kept) })
    }

    /// Changes the bounds; what was kept is forgotten.
    pub(super) fn bound(&self, keep: &Keep) {
        let file = keep.folder.as_ref().and_then(|(folder, most)| Some((nameless(folder).ok()?, *most)));
        let disk = Bound { used: 0, most: file.as_ref().map_or(0, |(_, most)| *most) };
        let memory = Bound { used: 0, most: keep.memory_bytes };
        *self.lock() = Kept { memory, disk, file: file.map(|(file, _)| Arc::new(file)), rows: HashMap::new() };
    }

    /// The values of these rows where they are kept; `None` where nothing is kept at all.
    fn find(&self, keys: &[Vec<i64>]) -> Option<Vec<Option<Arc<[f32]>>>> {
        let places: Vec<Option<Place>> = {
            let kept = self.lock();
            if kept.memory.most == 0 && kept.disk.most == 0 {
                return None;
            }
            keys.iter().map(|key| kept.rows.get(key).cloned()).collect()
        };
        Some(places.into_iter().map(|place| place?.read()).collect())
    }

    fn keep(&self, key: &[i64], values: &Arc<[f32]>) {
        let bytes = (size_of_val(key) + size_of_val(&**values)) as u64;
        let (file, first) = {
            let mut kept = self.lock();
            if kept.rows.contains_key(key) {
                return;
            }
            if kept.memory.take(bytes).is_some() {
                kept.rows.insert(key.to_vec(), Place::Memory(Arc::clone(values)));
                return;
            }
            let Some(file) = kept.file.clone() else { return };
            let Some(first) = kept.disk.take(bytes) else { return };
            (file, first)
        };
        // Written before anybody can find it, and without holding up others.
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        if file.write_all_at(&bytes, first).is_ok() {
            self.lock().rows.insert(key.to_vec(), Place::Disk(file, first, values.len()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn read(self) -> Option<Arc<[f32]>> {
        match self {
            Self::Memory(values) => Some(values),
            Self::Disk(file, first, count) => {
                let mut bytes = vec![0; count * size_of::<f32>()];
                file.read_exact_at(&mut bytes, first).ok()?;
                Some(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
            }
        }
    }
}

/// A new file that has lost its name already, so that it is gone when the process is, however that ends.
fn nameless(folder: &Path) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!(".below-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

impl Network {
    /// The tensors at the cut for these rows, computed where they are not kept yet; `None` where nothing is kept.
    pub(super) fn at_cut(&self, input: &Input) -> Option<(Cut, Vec<Tensor>)> {
        let below = self.below.as_ref()?;
        let keys: Vec<Vec<i64>> = input.spans.0.iter().map(|span| key(input, span.start, span.length)).collect();
        let mut rows = below.find(&keys)?;
        let missing: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].is_none()).collect();
        if !missing.is_empty() {
            let part = input.rows(&missing);
            let computed = self.compute_below(below.cut, &part);
            for (&row, values) in missing.iter().zip(split(&computed, &part.spans)?) {
                below.keep(&keys[row], &values);
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
