//! Torch's weight files (`.bin`): a zip archive of one pickle and raw storages.
//!
//! Reading accepts state dictionaries alone, honours strides and executes nothing; see `pickle`. Writing gives
//! files that `torch.load(weights_only=True)` reads, with equal bytes for equal tensors: names in order, fixed dates.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Cursor, Read, Write},
    ops::Range,
    path::Path,
};

use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{
    error::{FormatError, ModelError},
    pickle::{TensorRecord, state_dictionary},
    safetensors::extend_with_values,
    tensor::{HostTensor, Place, Tensors, elements, to_host},
    weights::gather,
};

/// Storages begin at multiples of this many bytes, as torch's own do, so that they can be mapped.
const ALIGNMENT: u16 = 64;

/// Names may share a storage; more than this many times the file's bytes is an attack on memory.
const MOST_SHARING: usize = 64;

/// All tensors as fp32.
///
/// # Errors
/// When the bytes are damaged (checksums are verified), hold anything but tensors, or a tensor is not of a float type.
pub fn read(bytes: &[u8]) -> Result<Tensors, FormatError> {
    let mut archive = Archive::open(bytes)?;
    archive.verify()?;
    let mut tensors = Tensors::new();
    let mut total = 0_usize;
    for (name, place) in archive.places()? {
        let Some(dtype) = place.dtype else { unreachable!("the pickle reader knows the type of every storage") };
        let raw = &bytes[place.range.clone()];
        total = total.saturating_add(raw.len());
        if total > bytes.len().saturating_mul(MOST_SHARING) {
            return Err(FormatError::Archive(format!("its tensors take more than {MOST_SHARING} times its bytes")));
        }
        let tensor = match &place.strides {
            None => to_host(&name, dtype, &place.shape, raw)?,
            Some(strides) => {
                let dense = gather(raw, dtype.size(), &place.shape, strides);
                let problem = |problem| FormatError::Tensor { tensor: name.clone(), problem };
                to_host(&name, dtype, &place.shape, &dense.map_err(problem)?)?
            }
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// All tensors of a file as fp32.
pub fn read_file(path: &Path) -> Result<Tensors, ModelError> {
    let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
    read(&bytes).map_err(|source| source.of(path.display().to_string()))
}

/// Where every tensor lies. Reads the pickle alone, so that a large file is not touched.
pub(crate) fn header(bytes: &[u8]) -> Result<Vec<(String, Place)>, FormatError> {
    Archive::open(bytes)?.places()
}

/// A torch archive whose entries are stored without compression, so that each is a range of the file.
struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    stem: String,
    entries: HashMap<String, Range<usize>>,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(archive_error)?;
        let mut entries = HashMap::new();
        let mut total = 0_usize;
        for index in 0..zip.len() {
            let (name, range) = entry(&mut zip, index, bytes.len())?;
            total = total.saturating_add(range.len());
            entries.insert(name, range);
        }
        if total > bytes.len() {
            return Err(FormatError::Archive("its entries overlap".into()));
        }
        let stems = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let stem = stems.min_by_key(|stem| (stem.len(), *stem)).map(str::to_owned);
        let stem = stem.ok_or_else(|| FormatError::Archive("the archive has no data.pkl".into()))?;
        let archive = Self { bytes, zip, stem, entries };
        match archive.entry("byteorder") {
            None | Some(b"little") => Ok(archive),
            Some(_) => Err(FormatError::Archive("its numbers are not little-endian".into())),
        }
    }

    fn entry(&self, name: &str) -> Option<&'a [u8]> {
        let range = self.entries.get(&format!("{}{name}", self.stem))?;
        Some(&self.bytes[range.clone()])
    }

    /// Reads every entry to its end, which compares its checksum.
    fn verify(&mut self) -> Result<(), FormatError> {
        for index in 0..self.zip.len() {
            let mut file = self.zip.by_index(index).map_err(archive_error)?;
            let checked = std::io::copy(&mut file.by_ref(), &mut std::io::sink());
            checked.map_err(|error| FormatError::Archive(format!("entry {index}: {error}")))?;
        }
        Ok(())
    }

    fn places(&self) -> Result<Vec<(String, Place)>, FormatError> {
        let pickle = self.entry("data.pkl").expect("open has found it");
        let tensors = state_dictionary(pickle)?;
        tensors.into_iter().map(|(name, record)| Ok((name.clone(), self.place(name, &record)?))).collect()
    }

    fn place(&self, tensor: String, record: &TensorRecord) -> Result<Place, FormatError> {
        let storage = &record.storage;
        let Some(range) = self.entries.get(&format!("{}data/{}", self.stem, storage.key)) else {
            let problem = format!("its storage data/{} is not in the archive", storage.key);
            return Err(FormatError::Tensor { tensor, problem });
        };
        let size = storage.dtype.size();
        let needed = usize::try_from(storage.elements).ok().and_then(|count| count.checked_mul(size));
        if needed.is_none_or(|needed| needed > range.len()) {
            let what = format!("storage data/{} of tensor \"{tensor}\"", storage.key);
            let (needed, found) = (needed.unwrap_or(usize::MAX) as u64, range.len() as u64);
            return Err(FormatError::Truncated { what, needed, found });
        }
        let Some((shape, span, strides)) = view(record) else {
            let problem =
                format!("shape {:?} with strides {:?} lies outside of its storage", record.shape, record.strides);
            return Err(FormatError::Tensor { tensor, problem });
        };
        let bytes = range.start + span.start * size..range.start + span.end * size;
        let dtype_name = storage.dtype.name().to_owned();
        Ok(Place { dtype: Some(storage.dtype), dtype_name, shape, range: bytes, strides })
    }
}

/// Shape, elements of the storage that a view spans, and strides unless it is in row-major order. `None` when the view
/// leaves its storage.
#[expect(clippy::type_complexity, reason = "three values that only `place` takes apart")]
fn view(record: &TensorRecord) -> Option<(Vec<usize>, Range<usize>, Option<Vec<usize>>)> {
    let sizes = |values: &[i64]| values.iter().map(|value| usize::try_from(*value).ok()).collect::<Option<Vec<_>>>();
    let (shape, strides) = (sizes(&record.shape)?, sizes(&record.strides)?);
    let (start, limit) = (usize::try_from(record.offset).ok()?, usize::try_from(record.storage.elements).ok()?);
    let count = elements(&shape)?;
    if count == 0 {
        return Some((shape, 0..0, None));
    }
    let mut last = start;
    for (size, stride) in shape.iter().zip(&strides) {
        last = last.checked_add((size - 1).checked_mul(*stride)?)?;
    }
    let end = last.checked_add(1)?;
    if end > limit {
        return None;
    }
    let dense =
        row_major(&shape).iter().zip(&strides).zip(&shape).all(|((want, have), size)| *size == 1 || want == have);
    Some((shape, start..end, (!dense).then_some(strides)))
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension].saturating_mul(shape[dimension].max(1));
    }
    strides
}

/// Name and bytes of one entry of the archive.
fn entry(
    zip: &mut ZipArchive<Cursor<&[u8]>>,
    index: usize,
    length: usize,
) -> Result<(String, Range<usize>), FormatError> {
    let file = zip.by_index(index).map_err(archive_error)?;
    let name = file.name().map_err(archive_error)?.into_owned();
    if file.compression() != CompressionMethod::Stored || file.encrypted() {
        return Err(FormatError::Archive(format!("entry {name} is compressed or encrypted, torch stores plainly")));
    }
    let start = file.data_start().and_then(|start| usize::try_from(start).ok());
    let size = usize::try_from(file.size()).ok();
    let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
    range.filter(|range| range.end <= length).map(|range| (name.clone(), range)).ok_or_else(|| FormatError::Truncated {
        what: format!("entry {name}"),
        needed: file.size(),
        found: length as u64,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn archive_error(error: zip::result::ZipError) -> FormatError {
    FormatError::Archive(error.to_string())
}

/// The bytes of a file with these tensors.
///
/// `aliases` maps further names to names of `tensors`; they share its storage as torch's own files do. `stem` is the
/// folder inside the archive; torch takes the file's name without `.bin`.
///
/// # Errors
/// When an alias names no tensor, or the archive cannot hold a name.
pub fn write(tensors: &Tensors, aliases: &BTreeMap<String, String>, stem: &str) -> Result<Vec<u8>, FormatError> {
    let mut names: Vec<(&str, &str)> = tensors.keys().map(|name| (name.as_str(), name.as_str())).collect();
    names.extend(aliases.iter().map(|(alias, target)| (alias.as_str(), target.as_str())));
    names.sort_unstable();
    let storages: HashMap<&str, usize> = tensors.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();

    let mut pickle = b"\x80\x02}(".to_vec();
    for (name, target) in names {
        let Some(tensor) = tensors.get(target) else {
            let problem = format!("is an alias of \"{target}\", which is not written");
            return Err(FormatError::Tensor { tensor: name.to_owned(), problem });
        };
        pickle_text(&mut pickle, name);
        pickle_tensor(&mut pickle, tensor, storages[target]);
    }
    pickle.extend_from_slice(b"u.");
    archive(&pickle, tensors, stem).map_err(archive_error)
}

fn archive(pickle: &[u8], tensors: &Tensors, stem: &str) -> zip::result::ZipResult<Vec<u8>> {
    let plain = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        let large = u32::try_from(bytes.len()).is_err();
        zip.start_file(format!("{stem}/{name}"), plain.large_file(large).with_alignment(ALIGNMENT))?;
        zip.write_all(bytes).map_err(zip::result::ZipError::from)
    };
    add("data.pkl", pickle)?;
    add("byteorder", b"little")?;
    let mut bytes = Vec::new();
    for (index, tensor) in tensors.values().enumerate() {
        bytes.clear();
        extend_with_values(&mut bytes, &tensor.values);
        add(&format!("data/{index}"), &bytes)?;
    }
    add("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`
fn pickle_tensor(pickle: &mut Vec<u8>, tensor: &HostTensor, storage: usize) {
    pickle.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    pickle_text(pickle, "storage");
    pickle.extend_from_slice(b"ctorch\nFloatStorage\n");
    pickle_text(pickle, &storage.to_string());
    pickle_text(pickle, "cpu");
    pickle_integer(pickle, tensor.values.len());
    pickle.extend_from_slice(b"tQ");
    pickle_integer(pickle, 0);
    for sizes in [&tensor.shape, &row_major(&tensor.shape)] {
        pickle.push(b'(');
        for size in sizes {
            pickle_integer(pickle, *size);
        }
        pickle.push(b't');
    }
    pickle.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
}

fn pickle_text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    let length = u32::try_from(text.len()).expect("a tensor's name is shorter than 4 GiB");
    pickle.extend_from_slice(&length.to_le_bytes());
    pickle.extend_from_slice(text.as_bytes());
}

fn pickle_integer(pickle: &mut Vec<u8>, value: usize) {
    if let Ok(byte) = u8::try_from(value) {
        pickle.extend_from_slice(&[b'K', byte]);
    } else if let Ok(short) = u16::try_from(value) {
        pickle.push(b'M');
        pickle.extend_from_slice(&short.to_le_bytes());
    } else if let Ok(int) = i32::try_from(value) {
        pickle.push(b'J');
        pickle.extend_from_slice(&int.to_le_bytes());
    } else {
        pickle.extend_from_slice(&[0x8a, 8]);
        pickle.extend_from_slice(&(value as u64).to_le_bytes());
    }
}
