//! Which job a command means: its id, or the first digits of it where no other job has them.

use std::{path::Path, str::FromStr};

use anyhow::anyhow;
use graftwork_shared::id::JobId;

use super::{Connection, Failure};

/// Fewest digits that name a job.
const LEAST: usize = 4;

/// Digits of a job's id.
const WHOLE: usize = 16;

/// A job as it is typed.
#[derive(Clone, Debug)]
pub(super) struct Which(String);

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if digits && (LEAST..=WHOLE).contains(&text.len()) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "a job is named by its id or by the first digits of it, {LEAST} to {WHOLE} of 0-9 and a-f; \
             `graftwork status` lists the jobs"
        ))
    }
}

impl Which {
    /// The job, among those of the coordinator that is named or of the state folder.
    pub(super) async fn find(&self, at: &Connection) -> Result<JobId, Failure> {
        if let Ok(whole) = self.0.parse() {
            return Ok(whole);
        }
        let (jobs, place) = match at.client().await? {
            Some(mut client) => {
                (client.all().await?.into_iter().map(|view| view.id).collect(), "the coordinator".to_owned())
            }
            None => (local_ids(&at.state), at.state.display().to_string()),
        };
        self.among(&jobs, &place)
    }

    /// The job, among those of a state folder.
    pub(super) fn find_local(&self, state: &Path) -> Result<JobId, Failure> {
        self.0.parse().or_else(|_| self.among(&local_ids(state), &state.display().to_string()))
    }

    fn among(&self, jobs: &[JobId], place: &str) -> Result<JobId, Failure> {
        let found: Vec<&JobId> = jobs.iter().filter(|job| job.as_str().starts_with(&self.0)).collect();
        let problem = match found.as_slice() {
            [only] => return Ok((*only).clone()),
            [] => format!("no job of {place} begins with {}; `graftwork status` lists the jobs", self.0),
            several => {
                let names: Vec<&str> = several.iter().map(|job| job.as_str()).collect();
                format!("{} jobs begin with {}: {}; write more digits", several.len(), self.0, names.join(", "))
            }
        };
        Err(Failure::input(anyhow!(problem)))
    }
}

/// Jobs that have a folder in the state folder.
pub(super) fn local_ids(state: &Path) -> Vec<JobId> {
    let entries = std::fs::read_dir(state).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_digits_name_a_job_where_no_other_has_them() {
        let jobs: Vec<JobId> =
            ["0123456789abcdef", "0123ffffffffffff", "abcd000000000000"].map(|id| id.parse().unwrap()).to_vec();
        let find = |text: &str| text.parse::<Which>().unwrap().among(&jobs, "here").map_err(|it| it.error.to_string());
        assert_eq!(find("abcd"), Ok(jobs[2].clone()));
        assert_eq!(find("01234"), Ok(jobs[0].clone()));
        assert_eq!(
            find("0123").unwrap_err(),
            "2 jobs begin with 0123: 0123456789abcdef, 0123ffffffffffff; write more digits"
        );
        assert!(find("ffff").unwrap_err().starts_with("no job of here begins with ffff"));
        for wrong in ["", "abc", "0123456789abcdef0", "ABCD", "abcg"] {
            assert!(wrong.parse::<Which>().is_err(), "{wrong}");
        }
    }
}
