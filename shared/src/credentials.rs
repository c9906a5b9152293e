//! Secrets that jobs name: an environment variable each, read in the process that needs it.
//!
//! A job is written by whoever submits it, and a named variable's value is sent to a place that the job names too. So a
//! process that serves jobs of others says which variables they may name, once, when it starts; one that runs its own
//! user's jobs need not. What Graftwork itself is told by variables is never a job's.

use std::{collections::BTreeSet, net::IpAddr, sync::OnceLock};

/// Variables of Graftwork's own begin so.
const OWN: &str = "GRAFTWORK_";

/// Those that jobs may name; unset: all but our own.
static ALLOWED: OnceLock<BTreeSet<String>> = OnceLock::new();

/// Why there is no secret. Names the variable and never shows a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Nothing is in it.
    #[error("the environment variable {0} is not set here, or is empty")]
    Unset(String),
    /// No job may name it.
    #[error("the environment variable {0} is Graftwork's own, and no job may have its value sent anywhere")]
    Own(String),
    /// This process serves jobs of others, and does not give it to them.
    #[error(
        "jobs may not name the environment variable {0} here; whoever runs this process allows it with --job-credentials {0}"
    )]
    NotAllowed(String),
}

/// From here on jobs may name these variables and no others. The first call counts.
pub fn allow_only(variables: impl IntoIterator<Item = String>) {
    let _ = ALLOWED.set(variables.into_iter().collect());
}

/// The value of a variable that a job names.
pub fn secret(variable: &str) -> Result<String, CredentialError> {
    may_name(variable, ALLOWED.get())?;
    let value = std::env::var(variable).unwrap_or_default();
    let value = value.trim();
    if value.is_empty() { Err(CredentialError::Unset(variable.to_owned())) } else { Ok(value.to_owned()) }
}

/// The value of a variable that whoever runs this process names, if there is one: a token, a password, keys.
pub fn of_operator(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok()?;
    let value = without_line_end(&value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// Secrets of Kubernetes are made of files, and have the end of the file's line in them.
fn without_line_end(value: &str) -> &str {
    value.trim_end_matches(['\r', '\n'])
}

/// Whether a secret may be sent to a host: encrypted, or to this machine.
pub fn may_be_sent(scheme: &str, host: Option<&str>) -> bool {
    let host = host.unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    scheme == "https" || here
}

fn may_name(variable: &str, allowed: Option<&BTreeSet<String>>) -> Result<(), CredentialError> {
    if variable.starts_with(OWN) {
        return Err(CredentialError::Own(variable.to_owned()));
    }
    if allowed.is_some_and(|allowed| !allowed.contains(variable)) {
        return Err(CredentialError::NotAllowed(variable.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_name_what_is_allowed_and_never_our_own() {
        let allowed = BTreeSet::from(["DATA_KEY".to_owned()]);
        assert_eq!(may_name("DATA_KEY", Some(&allowed)), Ok(()));
        assert_eq!(may_name("DATA_KEY", None), Ok(()));
        let refused = may_name("DATABASE_PASSWORD", Some(&allowed)).unwrap_err();
        assert!(refused.to_string().ends_with("--job-credentials DATABASE_PASSWORD"), "{refused}");
        for allowed in [None, Some(&BTreeSet::from(["GRAFTWORK_TOKEN".to_owned()]))] {
            assert_eq!(may_name("GRAFTWORK_TOKEN", allowed), Err(CredentialError::Own("GRAFTWORK_TOKEN".to_owned())));
        }
    }

    #[test]
    fn secrets_leave_this_machine_encrypted() {
        assert!(may_be_sent("https", Some("data.example")) && may_be_sent("http", Some("[::1]")));
        assert!(may_be_sent("http", Some("127.0.0.1")) && may_be_sent("http", Some("localhost")));
        assert!(!may_be_sent("http", Some("data.example")) && !may_be_sent("http", None));
    }

    #[test]
    fn a_files_last_line_end_is_no_part_of_a_secret() {
        assert_eq!(without_line_end("a secret \r\n"), "a secret ");
        assert_eq!(without_line_end("two\nlines"), "two\nlines");
    }

    #[test]
    fn a_variable_without_a_value_is_named() {
        let error = secret("NO_SUCH_VARIABLE_OF_A_JOB").unwrap_err();
        assert_eq!(error, CredentialError::Unset("NO_SUCH_VARIABLE_OF_A_JOB".to_owned()));
    }
}
