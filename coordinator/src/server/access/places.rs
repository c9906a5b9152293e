//! Where jobs of those who show a token may publish: below a hub that is theirs, and nowhere among nights.
//!
//! What lies in a history says what later nights are compared with, so whoever could publish there could have a worse
//! night pass. Nights of the coordinator itself come over its private socket, as its own user does.

use std::path::{Component, Path, PathBuf};

use graftwork_shared::job::Publish;
use tonic::Status;

use super::{Caller, Role};
use crate::publish::NIGHTS;

/// Folders of the coordinator's machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Below which whoever has a token of the role submit may publish.
    pub(crate) hubs: Vec<PathBuf>,
    /// Where histories of nights lie: no job with a token is published at, above or below one.
    pub(crate) histories: Vec<PathBuf>,
}

impl Places {
    /// Refuses a job that this caller may not have published there. Looks at the disk, since links may lead to a history.
    pub(super) fn check(&self, caller: &Caller, publish: &Publish) -> Result<(), Status> {
        let Caller { name, role, .. } = caller;
        let (Some(role), hub) = (role, Path::new(&publish.hub)) else { return Ok(()) };
        if *role == Role::Submit && !self.hubs.iter().any(|root| is_below(hub, root)) {
            let roots: Vec<String> = self.hubs.iter().map(|root| root.display().to_string()).collect();
            let may = if roots.is_empty() { "no folder".to_owned() } else { format!("{} alone", roots.join(" or ")) };
            return Err(Status::permission_denied(format!(
                "publish.hub: token {name:?} may publish below {may}; whoever runs the coordinator allows a folder with \
                 --hub-root"
            )));
        }
        if publish.hub.starts_with(NIGHTS) {
            let problem = format!("publish.hub: {} is for the coordinator's own nights; name a folder", publish.hub);
            return Err(Status::permission_denied(problem));
        }
        // What is not there yet cannot be followed up and down.
        if hub.components().any(|part| part == Component::ParentDir) {
            let problem = format!("publish.hub: {} goes up; name the folder itself", hub.display());
            return Err(Status::permission_denied(problem));
        }
        let releases = settled(&hub.join(&publish.organisation));
        let meets = |history: &&PathBuf| {
            let history = settled(history);
            releases.starts_with(&history) || history.starts_with(&releases)
        };
        match self.histories.iter().find(meets) {
            None => Ok(()),
            Some(history) => Err(Status::permission_denied(format!(
                "publish.hub: token {name:?} may not publish into {}, since {} holds the history of this coordinator's \
                 nights (--nightly-history); choose another hub or organisation",
                hub.join(&publish.organisation).display(),
                history.display()
            ))),
        }
    }
}

/// Whether a folder is this one or below it. A name that goes up is not followed.
fn is_below(folder: &Path, root: &Path) -> bool {
    !folder.components().any(|part| part == Component::ParentDir) && folder.starts_with(root)
}

/// The folder by its own name: what is there of it without links on the way, and the rest as it is written.
fn settled(folder: &Path) -> PathBuf {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let there = |above: &Path| Some(above.canonicalize().ok()?.join(whole.strip_prefix(above).ok()?));
    whole.ancestors().find_map(there).unwrap_or_else(|| whole.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_history_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [disk, hub] = ["disk", "hub"].map(|name| folder.path().join(name));
        std::fs::create_dir_all(disk.join("nights")).unwrap();
        std::os::unix::fs::symlink(&disk, &hub).unwrap();
        let check = |history: PathBuf, organisation: &str| {
            let places = Places { hubs: vec![hub.clone()], histories: vec![history] };
            let caller = Caller { name: "ann".into(), role: Some(Role::Submit), owner: None, most_priority: 0 };
            let hub = hub.display().to_string();
            places.check(&caller, &Publish { hub, organisation: organisation.to_owned(), license: None })
        };
        for history in [disk.join("nights"), hub.join("nights"), disk.join("nights/small")] {
            let said = check(history.clone(), "nights").unwrap_err();
            assert!(said.message().contains("holds the history of this coordinator's nights"), "{said:?}");
            check(history.clone(), "night").unwrap();
            check(history, "small").unwrap();
        }
        // One that is made later.
        check(disk.join("later/nights"), "later").unwrap_err();
        let places = Places { hubs: Vec::new(), histories: vec![disk.join("nights")] };
        let caller = Caller { name: "root".into(), role: Some(Role::Admin), owner: None, most_priority: 0 };
        let hub = folder.path().join("none/../disk").display().to_string();
        let up = places.check(&caller, &Publish { hub, organisation: "nights".to_owned(), license: None });
        assert!(up.unwrap_err().message().contains("goes up"));
        // Where the coordinator's own nights publish, nobody with a token does.
        let hub = format!("{NIGHTS}mail/tonight/hub/000001-a");
        let night = places.check(&caller, &Publish { hub, organisation: "nights".to_owned(), license: None });
        assert!(night.unwrap_err().message().contains("is for the coordinator's own nights"));
    }
}
