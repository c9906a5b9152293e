//! Split rules: which rows belong to which split.
//!
//! A row's split is a pure function of the rule and its row number, or of the rule and its group's value; moving a
//! file cannot change it. Row number: draw `(0, number)` of `Purpose::Split`. Group: draw `(1, h)` where h is the first
//! eight bytes of the SHA-256 of the value's text. A draw below `validation` is validation, below `validation + test`
//! test, else train.

use graftwork_shared::{
    data::{Split, SplitManifest, SplitRule},
    digest::Digest,
    random::{Purpose, Stream},
};

use crate::{
    Access, DataError, OpenFile,
    columns::{Role, check_group},
    scan::scan_texts,
};

/// Pins down the rows of one split. A rule over row numbers reads nothing; a rule with `group_by` reads that column
/// alone. `limit` keeps rows whose number is below it, before the rule.
///
/// Errors: shares out of range, a group column that is missing, of a wrong type or null, a split without rows.
pub async fn select(
    files: &[OpenFile],
    rule: Option<(SplitRule, Split)>,
    limit: Option<u64>,
    access: &Access,
) -> Result<SplitManifest, DataError> {
    let identities: Vec<_> = files.iter().map(|file| file.identity.clone()).collect();
    let all = identities.iter().map(|file| file.content.rows()).sum::<u64>().min(limit.unwrap_or(u64::MAX));
    let mut manifest = SplitManifest { files: identities, rule, limit, rows: all };
    if let Some((rule, _)) = &manifest.rule {
        check_shares(rule)?;
        if let Some(group) = &rule.group_by {
            files.iter().try_for_each(|file| check_group(&file.identity.location, &file.schema, group))?;
        }
    }
    if let Some(membership) = Membership::of(&manifest) {
        manifest.rows = match &membership.group_by {
            None => (0..all).filter(|number| membership.keeps_row(*number)).count() as u64,
            Some(group) => {
                let mut rows = 0;
                let unfiltered = SplitManifest { rule: None, ..manifest.clone() };
                scan_texts(&unfiltered, (group, Role::Group), access, |_, value| {
                    rows += u64::from(membership.keeps_group(value));
                })
                .await?;
                rows
            }
        };
    }
    if manifest.rows == 0 {
        let split = manifest.rule.as_ref().map_or("selected", |(_, split)| split.name());
        let help = match &manifest.rule {
            Some((SplitRule { group_by: Some(_), .. }, _)) => "raise its share, or use a column with more groups",
            Some(_) => "raise its share",
            None => "raise the limit",
        };
        return Err(DataError::EmptySplit { split: split.to_owned(), rows: all, help: help.to_owned() });
    }
    Ok(manifest)
}

fn check_shares(rule: &SplitRule) -> Result<(), DataError> {
    let legal = |share: f64| (0.0..1.0).contains(&share);
    if legal(rule.validation) && legal(rule.test) && rule.validation + rule.test < 1.0 {
        return Ok(());
    }
    Err(DataError::SplitShares { validation: rule.validation.to_string(), test: rule.test.to_string() })
}

/// A split rule at work.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) group_by: Option<String>,
    draw: Draw,
    split: Split,
}

/// The draw behind split rules, also used when importing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    stream: Stream,
    validation: f64,
    test: f64,
}

impl Draw {
    pub(crate) fn new(seed: u64, validation: f64, test: f64) -> Self {
        Self { stream: Stream::new(seed, Purpose::Split), validation, test }
    }

    pub(crate) fn row(&self, number: u64) -> Split {
        self.split(self.stream.u64(0, number))
    }

    pub(crate) fn group(&self, value: &str) -> Split {
        let digest = Digest::of(value.as_bytes());
        let head = digest.bytes().first_chunk::<8>().expect("a digest has 32 bytes");
        self.split(self.stream.u64(1, u64::from_le_bytes(*head)))
    }

    fn split(&self, bits: u64) -> Split {
        let unit = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        if unit < self.validation {
            Split::Validation
        } else if unit < self.validation + self.test {
            Split::Test
        } else {
            Split::Train
        }
    }
}

impl Membership {
    pub(crate) fn of(manifest: &SplitManifest) -> Option<Self> {
        let (rule, split) = manifest.rule.as_ref()?;
        let draw = Draw::new(rule.seed, rule.validation, rule.test);
        Some(Self { group_by: rule.group_by.clone(), draw, split: *split })
    }

    pub(crate) fn keeps_row(&self, number: u64) -> bool {
        self.draw.row(number) == self.split
    }

    pub(crate) fn keeps_group(&self, value: &str) -> bool {
        self.draw.group(value) == self.split
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met_and_every_row_has_one_split() {
        let draw = Draw::new(3, 0.1, 0.2);
        let splits: Vec<Split> = (0..20_000).map(|row| draw.row(row)).collect();
        let share = |split| splits.iter().filter(|found| **found == split).count() as f64 / 20_000.0;
        assert!((share(Split::Validation) - 0.1).abs() < 0.01, "{}", share(Split::Validation));
        assert!((share(Split::Test) - 0.2).abs() < 0.01, "{}", share(Split::Test));
        assert_eq!(draw.group("a film"), draw.group("a film"));
    }

    #[test]
    fn another_seed_draws_another_split() {
        let (one, two) = (Draw::new(1, 0.5, 0.0), Draw::new(2, 0.5, 0.0));
        assert!((0..64).any(|row| one.row(row) != two.row(row)));
    }

    #[test]
    fn shares_that_leave_nothing_to_train_on_are_refused() {
        let rule = |validation, test| SplitRule { validation, test, group_by: None, seed: 0 };
        for wrong in [rule(0.5, 0.5), rule(-0.1, 0.0), rule(f64::NAN, 0.0), rule(0.0, 1.5)] {
            assert!(matches!(check_shares(&wrong), Err(DataError::SplitShares { .. })), "{wrong:?}");
        }
        assert!(check_shares(&rule(0.1, 0.0)).is_ok());
    }
}
