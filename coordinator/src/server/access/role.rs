//! Roles, and which of them each request wants. What stands in no row is for admins alone.

use serde::{Deserialize, Serialize};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// For workers: to join, and to move blobs.
    Join,
    /// To look at jobs.
    Read,
    /// To look at jobs, to submit some, and to cancel one's own.
    Submit,
    /// Everything that people do, to the jobs of all owners.
    Admin,
}

impl Role {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Admin => "admin",
        }
    }
}

use Role::{Admin, Join, Read, Submit};

/// Every request of the protocol, what it does in words, and the roles that may make it.
const REQUESTS: &[(&str, &str, &[Role])] = &[
    ("/graftwork.v1.Jobs/Submit", "submitting a job", &[Submit, Admin]),
    ("/graftwork.v1.Jobs/View", "looking at jobs", &[Read, Submit, Admin]),
    ("/graftwork.v1.Jobs/Watch", "watching a job", &[Read, Submit, Admin]),
    ("/graftwork.v1.Jobs/Explain", "asking why a job waits", &[Read, Submit, Admin]),
    // Of another owner's job: admin, as the service finds.
    ("/graftwork.v1.Jobs/Cancel", "cancelling a job", &[Submit, Admin]),
    ("/graftwork.v1.Jobs/Forget", "forgetting a job", &[Submit, Admin]),
    ("/graftwork.v1.Jobs/Coordinator", "looking at the coordinator", &[Read, Submit, Admin]),
    ("/graftwork.v1.Workers/Session", "working", &[Join]),
    ("/graftwork.v1.Groups/Meet", "meeting a group", &[Join]),
    ("/graftwork.v1.Blobs/Put", "uploading", &[Join, Submit, Admin]),
    ("/graftwork.v1.Blobs/Get", "fetching blobs", &[Join]),
    ("/graftwork.v1.Blobs/Has", "asking what is uploaded", &[Submit, Admin]),
];

/// Any other request, and who may make it.
const OTHERS: (&str, &[Role]) = ("this request", &[Admin]);

/// What the request of this path does, and who may make it.
pub(super) fn wanted(path: &str) -> (&'static str, &'static [Role]) {
    REQUESTS.iter().find(|(known, ..)| *known == path).map_or(OTHERS, |(_, deed, roles)| (*deed, *roles))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The protocol's own text: a request that is added there wants a row here.
    #[test]
    fn every_request_of_the_protocol_has_its_row() {
        let text = include_str!("../../../../proto/proto/graftwork.proto");
        let (mut service, mut paths) = ("", Vec::new());
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("service ") {
                service = rest.trim_end_matches(" {");
            } else if let Some((name, _)) = line.strip_prefix("rpc ").and_then(|rest| rest.split_once('(')) {
                paths.push(format!("/graftwork.v1.{service}/{name}"));
            }
        }
        let rows: Vec<&str> = REQUESTS.iter().map(|(path, ..)| *path).collect();
        assert_eq!(rows, paths);
        assert_eq!(wanted("/graftwork.v1.Jobs/Burn").1, [Admin]);
    }
}
