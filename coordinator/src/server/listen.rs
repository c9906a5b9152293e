//! Sockets: which addresses are private enough to serve, and how they are opened.
//!
//! A unix socket lies in a folder that only the user can enter. TCP is served on loopback alone, since there is no
//! TLS here yet, and with a token, since every user of the machine reaches loopback; whatever else is asked for is
//! refused before anything is opened.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::{Listen, ServerError};

/// Bytes of a socket's path that the system allows, without the closing 0.
const PATH_BYTES: usize = 107;

/// An open socket.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Fewest bytes of a token: whoever reaches the port may try as many as the machine answers.
const TOKEN_BYTES: usize = 16;

/// Refuses what must not be served, before anything is opened.
pub(super) fn check(listen: &[Listen], token: Option<&str>) -> Result<(), ServerError> {
    if listen.is_empty() {
        return Err(ServerError::NoAddress);
    }
    for address in listen {
        match address {
            Listen::Tcp(address) if !address.ip().is_loopback() => return Err(ServerError::NotPrivate(*address)),
            Listen::Tcp(address) if token.is_none() => return Err(ServerError::NoToken(*address)),
            Listen::Tcp(_) if token.is_some_and(|token| token.len() < TOKEN_BYTES) => {
                return Err(ServerError::ShortToken { least: TOKEN_BYTES });
            }
            Listen::Unix(path) if path.as_os_str().len() > PATH_BYTES => {
                let length = path.as_os_str().len();
                return Err(ServerError::LongPath { path: path.clone(), length, limit: PATH_BYTES });
            }
            Listen::Tcp(_) | Listen::Unix(_) => {}
        }
    }
    Ok(())
}

/// Opens an address; gives it back with the port that was taken.
pub(super) async fn open(listen: &Listen) -> Result<(Listen, Socket), ServerError> {
    let failed = |error| ServerError::Listen { address: listen.to_string(), error };
    match listen {
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let taken: SocketAddr = listener.local_addr().map_err(failed)?;
            Ok((Listen::Tcp(taken), Socket::Tcp(listener)))
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
