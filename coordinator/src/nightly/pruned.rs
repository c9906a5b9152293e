//! Nights that are no longer kept: their answers and pages go, and their numbers stay for the nights to come.
//!
//! A change of time or memory is told from noise over the history alone, and so is how far seeds scatter; both want more
//! nights than a disk wants pages of. A number that cannot be read is told, and keeps no night from being compared.

use std::{fs, path::Path};

use super::{
    history::{History, NIGHT, of_this_layout, read_if_there, remove},
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

    /// Removes the oldest nights beyond `keep`, but never the last good one nor the last good one whose answers can be read;
    /// their numbers stay. What an earlier removal left, which was broken off, goes too.
    pub(super) fn prune(&self, nights: &[Night], keep: u32) -> Result<(), Failure> {
        let beyond = nights.len().saturating_sub(keep as usize);
        if beyond > 0 {
            let good = || nights.iter().rev().filter(|night| night.judged.as_ref().is_some_and(|judged| judged.good));
            let stay = [good().next(), good().find(|night| self.book(night).is_ok())];
            let stay = stay.map(|night| night.map(|night| night.number));
            for night in nights[..beyond].iter().filter(|night| !stay.contains(&Some(night.number))) {
                let numbers = serde_json::to_vec(&night.numbers())?;
                graftwork_store::write_atomically(&self.pruned_folder().join(name(night.number)), &numbers)?;
                // Without its last file a night is none, so a kill in between leaves no half of it.
                fs::remove_file(self.folder_of(night.number).join(NIGHT))?;
            }
        }
        let numbers = self.pruned_numbers()?;
        for number in &numbers {
            let folder = self.folder_of(*number);
            if !folder.join(NIGHT).exists() {
                remove(&folder)?;
            }
        }
        for number in &numbers[..numbers.len().saturating_sub(REMEMBERED)] {
            fs::remove_file(self.pruned_folder().join(name(*number)))?;
        }
        Ok(self.settle()?)
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
