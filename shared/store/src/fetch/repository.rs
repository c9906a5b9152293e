//! Repositories of a Hugging Face compatible hub, over plain HTTP: revision → commit and files → one GET each.
//!
//! `HF_ENDPOINT` names the hub. Large files carry their SHA-256 as ETag and are checked by it; small ones carry a git
//! hash and are checked by size. Redirects go where the hub sends them, but the token goes to the hub's own host alone
//! (the HTTP client drops it when the host changes).

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode, header, redirect};
use serde::Deserialize;

use super::{
    Cache, Fetched, Wanted,
    held::complete,
    partial::{Announced, Entry, Partial},
};
use crate::StoreError;

const PUBLIC_HUB: &str = "https://huggingface.co";
/// Tries for one file; each goes on where the one before broke.
const TRIES: u32 = 4;

/// `hf://organisation/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    repository: String,
    revision: String,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Address {
    pub(super) fn parse(location: &str, rest: &str) -> Result<Self, StoreError> {
        let problem = |problem: &str| StoreError::Location {
            location: location.to_owned(),
            problem: format!("{problem}; write hf://organisation/name@revision"),
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let legal = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        match repository.split('/').collect::<Vec<_>>()[..] {
            [organisation, name] if legal(organisation) && legal(name) => {}
            _ => return Err(problem("the repository is not organisation/name")),
        }
        if revision.is_empty() || !revision.split('/').all(legal) {
            return Err(problem("the revision is not a branch, tag or commit"));
        }
        Ok(Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }

    /// Where this commit lies in the cache.
    fn version(&self, commit: &str) -> String {
        format!("hub/{}/{commit}", self.repository.replace('/', "--"))
    }
}

struct Server<'a> {
    endpoint: String,
    token: Option<&'a str>,
    follow: Client,
    stay: Client,
}

pub(super) async fn fetch(
    address: &Address,
    token: Option<&str>,
    cache: Cache<'_>,
    wanted: Wanted,
) -> Result<Fetched, StoreError> {
    // One commit may serve as a model and as an adapter, with other files of it.
    let version = |commit: &str| format!("{}/{}", wanted.folder(), address.version(commit));
    if is_commit(&address.revision)
        && let Some(complete) = complete(&cache.folder.join(version(&address.revision)))
    {
        return Ok(complete);
    }
    let server = Server::new(token)?;
    let revision = server.revision(address).await?;
    let partial = match Partial::open(cache, &version(&revision.sha)).await? {
        Entry::Complete(folder) => return Ok(folder),
        Entry::Open(partial) => partial,
    };
    let files = wanted.choose(revision.siblings.iter().map(|sibling| sibling.rfilename.as_str()));
    if !wanted.key_files().iter().any(|name| files.contains(name)) {
        return Err(StoreError::Location {
            location: format!("hf://{}@{}", address.repository, address.revision),
            problem: format!("the repository holds no {}", wanted.key_files().join(" or ")),
        });
    }
    for file in files {
        check_path(file)?;
        server.file(address, &revision.sha, file, &partial).await?;
    }
    partial.finish()
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A hub's list of files is a stranger's text: nothing of it may leave the folder.
fn check_path(file: &str) -> Result<(), StoreError> {
    if file.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        let problem = "the hub lists a file outside its repository".to_owned();
        return Err(StoreError::Damaged { place: file.to_owned(), problem });
    }
    Ok(())
}

impl<'a> Server<'a> {
    fn new(token: Option<&'a str>) -> Result<Self, StoreError> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|value| !value.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| PUBLIC_HUB.to_owned()).trim_end_matches('/').to_owned();
        let client = |policy| {
            let builder = Client::builder().user_agent(concat!("graftwork/", env!("CARGO_PKG_VERSION")));
            let builder = builder.connect_timeout(Duration::from_secs(20)).read_timeout(Duration::from_mins(1));
            builder.redirect(policy).build().map_err(|error| network(&endpoint, &error))
        };
        let (follow, stay) = (client(redirect::Policy::limited(10))?, client(redirect::Policy::none())?);
        Ok(Self { endpoint, token, follow, stay })
    }

    async fn send(&self, client: &Client, method: Method, url: &str, from: u64) -> Result<Response, StoreError> {
        let mut request = client.request(method, url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let response = request.send().await.map_err(|error| network(url, &error))?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        let words = ["x-error-code", "x-error-message"].map(|name| text_header(&response, name).unwrap_or_default());
        let detail = words.join(" ").trim().to_owned();
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        Err(StoreError::Refused { url: url.to_owned(), status: status.as_u16(), detail })
    }

    async fn revision(&self, address: &Address) -> Result<Revision, StoreError> {
        let quoted = address.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{quoted}", self.endpoint, address.repository);
        let response = retry(|| self.send(&self.follow, Method::GET, &url, 0)).await?;
        let body = response.bytes().await.map_err(|error| network(&url, &error))?;
        let revision: Revision = serde_json::from_slice(&body)
            .map_err(|error| StoreError::Damaged { place: url.clone(), problem: error.to_string() })?;
        if is_commit(&revision.sha) {
            return Ok(revision);
        }
        let problem = format!("{:?} is not a commit of 40 hexadecimal digits", revision.sha);
        Err(StoreError::Damaged { place: url, problem })
    }

    /// Downloads one file behind the bytes that are here already, and checks it.
    async fn file(&self, address: &Address, commit: &str, path: &str, partial: &Partial) -> Result<(), StoreError> {
        let quoted: Vec<String> = path.split('/').map(quote).collect();
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, address.repository, quoted.join("/"));
        let announced = retry(|| self.announced(&url)).await?;
        partial.expect(path, announced.bytes).await;
        retry(|| async {
            let have = partial.have(path);
            let from = if have <= announced.bytes { have } else { 0 };
            let mut file = partial.append(path, from).await?;
            if from < announced.bytes {
                let response = self.send(&self.follow, Method::GET, &url, from).await?;
                if from > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                    // The server sends the whole file; what is here already is dropped.
                    file = partial.append(path, 0).await?;
                }
                let chunks = futures::stream::unfold(response, |mut response| async {
                    let chunk = response.chunk().await.map_err(|error| network(&url, &error)).transpose()?;
                    Some((chunk, response))
                });
                partial.fill(path, &mut file, chunks).await?;
            }
            partial.close(path, file, &announced).await
        })
        .await
    }

    /// Size and SHA-256 by HEAD. Only redirects within the host are followed: the announcement is the hub's own.
    async fn announced(&self, url: &str) -> Result<Announced, StoreError> {
        let mut at = url.to_owned();
        for _ in 0..5 {
            let response = self.send(&self.stay, Method::HEAD, &at, 0).await?;
            let size = text_header(&response, "x-linked-size").or_else(|| text_header(&response, "content-length"));
            let tag = text_header(&response, "x-linked-etag").or_else(|| text_header(&response, "etag"));
            match text_header(&response, "location") {
                Some(next) if response.status().is_redirection() && next.starts_with('/') => {
                    at = format!("{}{next}", self.endpoint);
                }
                _ => {
                    let bytes = size.as_deref().and_then(|size| size.parse().ok());
                    let problem = "the server does not tell the file's size".to_owned();
                    let bytes = bytes.ok_or(StoreError::Damaged { place: at, problem })?;
                    let tag = tag.unwrap_or_default();
                    let tag = tag.trim_start_matches("W/").trim_matches('"');
                    return Ok(Announced { bytes, sha256: tag.parse().ok() });
                }
            }
        }
        Err(StoreError::Network { url: url.to_owned(), problem: "more than 5 redirects".to_owned() })
    }
}

/// Tries again what the network may have broken, each time after a longer pause.
pub(super) async fn retry<T, F: Future<Output = Result<T, StoreError>>>(
    mut act: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut pause = Duration::from_millis(200);
    let mut left = TRIES;
    loop {
        left -= 1;
        match act().await {
            Err(error) if left > 0 && may_pass(&error) => tracing::warn!("trying again: {error}"),
            other => return other,
        }
        tokio::time::sleep(pause).await;
        pause *= 4;
    }
}

fn may_pass(error: &StoreError) -> bool {
    match error {
        StoreError::Network { .. } | StoreError::Damaged { .. } => true,
        StoreError::Refused { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}

fn text_header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(ToOwned::to_owned)
}

fn quote(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The innermost cause says what happened; the client's outer words only say that something did.
fn network(url: &str, error: &reqwest::Error) -> StoreError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    StoreError::Network { url: url.to_owned(), problem: cause.to_string() }
}
