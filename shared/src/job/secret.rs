//! Knows secrets by their looks, so that one which was pasted into a job file is refused and never shown.
//!
//! A guess, and only ever used to refuse: the file is not searched for anything else.

/// Prefixes of tokens that well-known services hand out, and the least length of such a token.
const PREFIXES: [(&str, usize); 12] = [
    ("hf_", 20),
    ("sk-", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("AKIA", 20),
    ("ASIA", 20),
    ("ya29.", 20),
    ("-----BEGIN", 10),
];

/// Parts of an address's query that carry a secret.
const QUERIES: [&str; 7] = ["signature=", "sig=", "token=", "password=", "secret=", "api_key=", "access_key="];

/// Names of keys that hold secrets elsewhere; no key of a job file has one of them.
const KEYS: [&str; 9] =
    ["token", "password", "passwd", "secret", "api_key", "apikey", "access_key", "secret_key", "access_token"];

/// Whether a text looks like a token, a private key, or an address with a password or a signature in it.
pub(crate) fn looks_secret(text: &str) -> bool {
    let text = text.trim();
    let token = PREFIXES.iter().any(|(prefix, least)| {
        text.starts_with(prefix) && text.len() >= *least && (prefix.starts_with('-') || !text.contains([' ', '/']))
    });
    let web_token = text.starts_with("eyJ") && text.len() >= 40 && text.matches('.').count() == 2;
    token || web_token || address_with_secret(text)
}

/// Whether a key's name says that its value is a secret.
pub(crate) fn names_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    KEYS.iter().any(|name| key == *name || key.strip_suffix(name).is_some_and(|start| start.ends_with('_')))
}

fn address_with_secret(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let with_password = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    let query = rest.split_once('?').map(|(_, query)| query.to_ascii_lowercase()).unwrap_or_default();
    with_password || query.split('&').any(|part| QUERIES.iter().any(|name| part.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_looks() {
        for secret in [
            "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ",
            "AKIAIOSFODNN7EXAMPLE",
            "-----BEGIN PRIVATE KEY-----",
            "https://ada:love@host/rows.parquet",
            "https://host/rows.parquet?X-Amz-Signature=0011",
            "https://host/rows.parquet?x=1&sig=0011",
        ] {
            assert!(looks_secret(secret), "{secret}");
        }
        for text in
            ["HF_TOKEN", "hf_token", "hf://org/name@main", "s3://bucket/a@b:c", "data/sk-learn.parquet", "sk-learn"]
        {
            assert!(!looks_secret(text), "{text}");
        }
        assert!(names_secret("hub_token") && names_secret("Password") && !names_secret("tokens"));
    }
}
