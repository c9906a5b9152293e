//! A trunk's packed weights in a file: packed once for a base model, then mapped by every process of the machine.
//!
//! The layout of [`Panels`] is the same for every set of instructions, so one file serves them all. Each matrix begins on a
//! page, has a checksum, and is checked when a product first asks for it; a damaged one is packed anew in memory, and
//! the file removed. Written under another name and then renamed, so it is whole or absent.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use graftwork_shared::digest::Digest;
use memmap2::Mmap;

use crate::{
    kernel::{PANEL_COLUMNS, Panels},
    shelf::{Shelves, Whole},
};

/// What the file begins with: changes with its layout.
const MAGIC: [u8; 8] = *b"gwpack01";
/// Bytes of the table for one matrix: where it begins, its checksum, and nothing.
const ENTRY: usize = 16;
/// A page: what is mapped begins on one, and vectors on lines of the cache within it.
const PAGE: u64 = 4096;

/// A matrix that can be packed: its sizes, and how.
pub(crate) struct Unpacked<'a> {
    pub(crate) sizes: [usize; 2],
    pub(crate) pack: Box<dyn Fn() -> Panels + 'a>,
}

/// The mapped file.
#[derive(Debug)]
pub(crate) struct PackedFile {
    map: Arc<Mmap>,
    sums: Vec<u32>,
    whole: Whole,
}

impl PackedFile {
    /// The file of a base model's matrices, which is written if it is not there yet; `None` where it cannot be kept.
    pub(crate) fn of(shelves: &Arc<Shelves>, base: &Digest, matrices: &[Unpacked]) -> Option<Self> {
        let sizes: Vec<[usize; 2]> = matrices.iter().map(|matrix| matrix.sizes).collect();
        let key = Digest::of_value(
            "graftwork packed weights",
            &(base, PANEL_COLUMNS, &sizes, cfg!(target_endian = "little")),
        );
        // A file that is not what was written is removed, and written again.
        for _ in 0..2 {
            let whole = shelves.whole("packed", &key, file_bytes(&sizes), |file| write(file, matrices))?;
            match Self::open(whole, &sizes) {
                Ok(file) => return Some(file),
                Err(whole) => whole.damaged(),
            }
        }
        None
    }

    fn open(whole: Whole, sizes: &[[usize; 2]]) -> Result<Self, Whole> {
        match read_table(whole.file(), sizes) {
            Some((map, sums)) => Ok(Self { map: Arc::new(map), sums, whole }),
            None => Err(whole),
        }
    }

    /// A matrix, if it is whole.
    pub(crate) fn panels(&self, number: usize, sizes: [usize; 2]) -> Option<Panels> {
        let table = read_offset(&self.map, number)?;
        let first = usize::try_from(table).ok()?;
        let bytes = self.map.get(first..first.checked_add(Panels::bytes_of(sizes))?)?;
        if crc32fast::hash(bytes) != *self.sums.get(number)? {
            self.whole.damaged();
            return None;
        }
        Panels::mapped(&self.map, first, sizes)
    }
}

fn header_bytes(count: usize) -> u64 {
    (MAGIC.len() + 8 + ENTRY * count) as u64
}

fn offsets(sizes: &[[usize; 2]]) -> Vec<u64> {
    let mut next = header_bytes(sizes.len());
    let place = |sizes: &[usize; 2]| {
        let first = next.next_multiple_of(PAGE);
        next = first + Panels::bytes_of(*sizes) as u64;
        first
    };
    sizes.iter().map(place).collect()
}

fn file_bytes(sizes: &[[usize; 2]]) -> u64 {
    let last = offsets(sizes).last().copied().unwrap_or(0);
    last + sizes.last().map_or(header_bytes(0), |sizes| Panels::bytes_of(*sizes) as u64)
}

/// Packs one matrix after the other into the file, and the table last.
fn write(file: &File, matrices: &[Unpacked]) -> io::Result<()> {
    let sizes: Vec<[usize; 2]> = matrices.iter().map(|matrix| matrix.sizes).collect();
    let mut table = Vec::new();
    for (matrix, first) in matrices.iter().zip(offsets(&sizes)) {
        let panels = (matrix.pack)();
        file.write_all_at(panels.bytes(), first)?;
        table.extend_from_slice(&first.to_le_bytes());
        table.extend_from_slice(&crc32fast::hash(panels.bytes()).to_le_bytes());
        table.extend_from_slice(&[0; 4]);
    }
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&u32::try_from(matrices.len()).map_err(io::Error::other)?.to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(&table).to_le_bytes());
    file.write_all_at(&[head, table].concat(), 0)
}

/// The mapped file with the matrices' checksums, if its table is that of these sizes.
fn read_table(file: &File, sizes: &[[usize; 2]]) -> Option<(Mmap, Vec<u32>)> {
    // SAFETY: the mapping is read-only. The file was renamed to its name when it was whole and is never written again;
    // it may be removed, which leaves the mapping as it is. Another program that shortens it would end this process, as
    // with any mapped file.
    let map = unsafe { Mmap::map(file) }.ok()?;
    let (head, rest) = map.split_at_checked(MAGIC.len() + 8)?;
    let table = rest.get(..ENTRY * sizes.len())?;
    let count = u32::try_from(sizes.len()).ok()?.to_le_bytes();
    let expected = [MAGIC.as_slice(), &count, &crc32fast::hash(table).to_le_bytes()].concat();
    let placed = offsets(sizes).iter().enumerate().all(|(number, first)| read_offset(&map, number) == Some(*first));
    if head != expected || !placed || (map.len() as u64) < file_bytes(sizes) {
        return None;
    }
    let sums = table.as_chunks::<ENTRY>().0.iter();
    let sums = sums.filter_map(|entry| Some(u32::from_le_bytes(*entry[8..].first_chunk()?))).collect();
    Some((map, sums))
}

fn read_offset(map: &Mmap, number: usize) -> Option<u64> {
    let at = MAGIC.len() + 8 + ENTRY * number;
    Some(u64::from_le_bytes(*map.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

    use tempfile::TempDir;

    use super::*;
    use crate::{
        LaneOptions, Network, Trunk,
        testing::{adapter_setup, rows, shaken_weights, tiny_trunk},
    };

    /// A damage to a file.
    type Change = fn(&mut Vec<u8>);

    fn shelves(folder: &TempDir, most: u64) -> Arc<Shelves> {
        Arc::new(Shelves::new(folder.path().to_owned(), most))
    }

    fn output(trunk: Trunk) -> crate::LaneOutput {
        let setup = adapter_setup("double_seq_bn", "a");
        let network = Network::new(trunk, setup.clone(), shaken_weights(&setup)).unwrap();
        let options = LaneOptions { loss_scale: 1.0, step: 0, dropout: None, skip_layers: &[] };
        network.lane(&rows(&[5, 9], 0), &options).unwrap()
    }

    fn file(folder: &TempDir) -> Option<PathBuf> {
        let shelves = fs::read_dir(folder.path()).unwrap().map(|shelf| shelf.unwrap().path());
        shelves.map(|shelf| shelf.join("whole")).find(|file| file.exists())
    }

    /// How many of the trunk's matrices lie in a file, after they were asked for.
    fn mapped(trunk: &Trunk) -> usize {
        trunk.layers.iter().flat_map(crate::trunk::LayerWeights::linears).map(crate::block::Linear::mapped).sum()
    }

    #[test]
    fn weights_are_packed_once_for_all_and_give_the_same_bytes() {
        let folder = TempDir::new().unwrap();
        let base = Digest::of(b"tiny trunk");
        let expected = output(tiny_trunk());
        let first = tiny_trunk().packed_once(&shelves(&folder, 1 << 24), &base);
        assert_eq!(output(first.share()), expected);
        // Two layers of six matrices, without keys and values of the last: forward all of them, backward those above the
        // lowest adapter.
        assert!(mapped(&first) > 14, "{}", mapped(&first));
        let written = fs::metadata(file(&folder).unwrap()).unwrap();
        let again = tiny_trunk().packed_once(&shelves(&folder, 1 << 24), &base);
        assert_eq!((output(again.share()), mapped(&again)), (expected.clone(), mapped(&first)));
        let found = fs::metadata(file(&folder).unwrap()).unwrap();
        assert_eq!([written.len(), written.ino()], [found.len(), found.ino()]);
        // A bound that it does not fit in.
        let small = TempDir::new().unwrap();
        let none = tiny_trunk().packed_once(&shelves(&small, 1000), &base);
        assert_eq!((output(none.share()), mapped(&none), file(&small)), (expected, 0, None));
    }

    #[test]
    fn a_damaged_file_is_packed_again() {
        let folder = TempDir::new().unwrap();
        let base = Digest::of(b"tiny trunk");
        let expected = output(tiny_trunk());
        let open = || tiny_trunk().packed_once(&shelves(&folder, 1 << 24), &base);
        let trunk = open();
        output(trunk.share());
        let whole = mapped(&trunk);
        let path = file(&folder).unwrap();
        let bytes = fs::read(&path).unwrap();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            // Another file in its place: whoever maps the old one keeps it.
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        };
        // In the first matrix: the others are used, and the file goes.
        with(&|bytes| *bytes.get_mut(4096 + 100).unwrap() ^= 1);
        let trunk = open();
        assert_eq!(output(trunk.share()), expected);
        assert_eq!(mapped(&trunk), whole - 1);
        assert!(!path.exists());
        let _written_again = open();
        let changes: [Change; 4] =
            [|bytes| bytes[3] ^= 1, |bytes| bytes[20] ^= 1, |bytes| bytes.truncate(4096), Vec::clear];
        for change in changes {
            with(&change);
            let trunk = open();
            assert_eq!((output(trunk.share()), mapped(&trunk)), (expected.clone(), whole));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}
