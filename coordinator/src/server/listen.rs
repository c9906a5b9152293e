//! Sockets: which addresses are private enough to serve, and how they are opened.
//!
//! A unix socket lies in a folder that only the user can enter. Plain TCP is served on loopback alone, and with a token,
//! since every user of the machine reaches loopback. Everything else wants TLS and tokens with roles; whatever lacks
//! them is refused before anything is opened.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::{Auth, ServerError, access::Tokens, tls::Identity};

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Listen {
    /// A socket in a folder that only this user can enter; the folder is made if missing.
    Unix(PathBuf),
    /// Plain text on a loopback address, with a token; port 0 takes a free one.
    Tcp(SocketAddr),
    /// TLS, with a token; port 0 takes a free one.
    Tls(SocketAddr),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
        }
    }
}

/// Bytes of a socket's path that the system allows, without the closing 0.
const PATH_BYTES: usize = 107;

/// An open socket.
pub(super) enum Socket {
    Unix(UnixListener),
    /// With TLS, or plain.
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// Fewest bytes of a token: whoever reaches the port may try as many as the machine answers.
const TOKEN_BYTES: usize = 16;

/// Refuses what must not be served, before anything is opened.
pub(super) fn check(listen: &[Listen], auth: &Auth, tls: Option<&Identity>) -> Result<(), ServerError> {
    if listen.is_empty() {
        return Err(ServerError::NoAddress);
    }
    if tls.is_some() && !listen.iter().any(|address| matches!(address, Listen::Tls(_))) {
        return Err(ServerError::UselessTls);
    }
    if let Auth::Token(token) = auth
        && token.len() < TOKEN_BYTES
    {
        return Err(ServerError::ShortToken { least: TOKEN_BYTES });
    }
    for address in listen {
        match address {
            Listen::Tcp(address) if !address.ip().is_loopback() => return Err(ServerError::NotPrivate(*address)),
            Listen::Tls(address) if !address.ip().is_loopback() => check_guard(*address, auth, tls)?,
            Listen::Tls(address) if tls.is_none() => return Err(ServerError::NoCertificate(*address)),
            Listen::Tcp(address) | Listen::Tls(address) if matches!(auth, Auth::None) => {
                return Err(ServerError::NoToken(*address));
            }
            Listen::Unix(path) if path.as_os_str().len() > PATH_BYTES => {
                let length = path.as_os_str().len();
                return Err(ServerError::LongPath { path: path.clone(), length, limit: PATH_BYTES });
            }
            Listen::Tcp(_) | Listen::Tls(_) | Listen::Unix(_) => {}
        }
    }
    Ok(())
}

/// An address that others reach wants both, and one message says which of them lack.
fn check_guard(address: SocketAddr, auth: &Auth, tls: Option<&Identity>) -> Result<(), ServerError> {
    match (tls.is_some(), matches!(auth, Auth::Tokens(_))) {
        (true, true) => Ok(()),
        (tls, tokens) => Err(ServerError::Unguarded { address, tls, tokens }),
    }
}

/// Tokens as they are shown here; the one of a variable counts as such.
pub(super) fn tokens(auth: Auth) -> Option<Tokens> {
    match auth {
        Auth::None => None,
        Auth::Token(token) => Some(Tokens::one(&token)),
        Auth::Tokens(tokens) => Some(tokens),
    }
}

/// Opens an address; gives it back with the port that was taken.
pub(super) async fn open(listen: &Listen, tls: Option<&TlsAcceptor>) -> Result<(Listen, Socket), ServerError> {
    let failed = |error| ServerError::Listen { address: listen.to_string(), error };
    match listen {
        Listen::Tcp(address) => {
            let (taken, listener) = bind(*address).await.map_err(failed)?;
            Ok((Listen::Tcp(taken), Socket::Tcp(listener, None)))
        }
        Listen::Tls(address) => {
            let tls = tls.cloned().ok_or(ServerError::NoCertificate(*address))?;
            let (taken, listener) = bind(*address).await.map_err(failed)?;
            Ok((Listen::Tls(taken), Socket::Tcp(listener, Some(tls))))
        }
        Listen::Unix(path) => {
            make_private(path.parent().unwrap_or(Path::new(".")))?;
            if UnixStream::connect(path).await.is_ok() {
                return Err(failed(io::Error::from(io::ErrorKind::AddrInUse)));
            }
            // Nobody answers: the socket of a process that is gone.
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
            Ok((listen.clone(), Socket::Unix(listener)))
        }
    }
}

async fn bind(address: SocketAddr) -> io::Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind(address).await?;
    Ok((listener.local_addr()?, listener))
}

/// Makes the folder if it is missing; refuses one that others can enter.
fn make_private(folder: &Path) -> Result<(), ServerError> {
    let failed = |error| ServerError::Folder { folder: folder.to_owned(), error };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let found = fs::metadata(folder).map_err(failed)?;
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(ServerError::OpenFolder { folder: folder.to_owned(), mode });
    }
    Ok(())
}
