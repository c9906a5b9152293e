//! Nights that are no longer kept: their answers and pages go, and their numbers stay for the nights to come.
//!
//! A change of time or memory is told from noise over the history alone, and so is how far seeds scatter; both want more
//! nights than a disk wants pages of. A number that cannot be read is told, and keeps no night from being compared.

use std::{fs, path::Path};

use super::{
    history::{History, NIGHT, last_good, of_this_layout, read_if_there},
    night::Night,
};
use crate::cli::Failure;

/// Nights whose numbers stay beyond those that are kept: somewhat more than a year of them.
const REMEMBERED: usize = 400;

impl History {
    /// All nights whose numbers are known, oldest first: those that are kept, and those that were.
    pub(super) fn known(&self) -> Result<Vec<Night>, Failure> {
        self.known_beside(self.nights()?)
    }

    /// The same, where those that are kept were read already.
    pub(super) fn known_beside(&self, kept: Vec<Night>) -> Result<Vec<Night>, Failure> {
        let mut known = Vec::new();
        for number in self.pruned_numbers()? {
            // A kill while it was pruned leaves both.
            if kept.iter().any(|night| night.number == number) {
                continue;
            }
            let path = self.pruned_folder().join(name(number));
            match read(&path) {
                Ok(night) => known.extend(night),
                Err(failure) => self.tell(&format!("night {number} is left out: {}", failure.error)),
            }
        }
        known.extend(kept);
        known.sort_by_key(|night| night.number);
        Ok(known)
    }

    /// Removes the oldest nights beyond `keep`, but never the last good one; their numbers stay.
    pub(super) fn prune(&self, nights: &[Night], keep: u32) -> Result<(), Failure> {
        let last_good = last_good(nights).map(|night| night.number);
        let beyond = nights.len().saturating_sub(keep as usize);
        for night in nights[..beyond].iter().filter(|night| Some(night.number) != last_good) {
            let numbers = serde_json::to_vec(&night.numbers())?;
            graftwork_store::write_atomically(&self.pruned_folder().join(name(night.number)), &numbers)?;
            let folder = self.folder_of(night.number);
            // Without its last file a night is none, so a kill in between leaves no half of it.
            fs::remove_file(folder.join(NIGHT))?;
            fs::remove_dir_all(&folder)?;
        }
        let numbers = self.pruned_numbers()?;
        for number in &numbers[..numbers.len().saturating_sub(REMEMBERED)] {
            fs::remove_file(self.pruned_folder().join(name(*number)))?;
        }
        Ok(())
    }

    fn pruned_numbers(&self) -> Result<Vec<u64>, Failure> {
        let entries = match fs::read_dir(self.pruned_folder()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            numbers.extend(file.to_string_lossy().strip_suffix(".json").and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn name(number: u64) -> String {
    format!("{number:06}.json")
}

fn read(path: &Path) -> Result<Option<Night>, Failure> {
    read_if_there::<Night>(path)?.map(|night| of_this_layout(path, night)).transpose()
}
