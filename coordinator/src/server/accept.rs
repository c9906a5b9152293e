//! Connections: accepted, shaken hands with, and closed when they show nothing in time.
//!
//! A peer has `Limits::proof_wait` from its first byte to a request with a token that counts. Whoever drags out a
//! handshake, a header or a guess is cut off then, and holds no more than its place among the connections.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep_until, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{
    access::{Limits, Peer},
    listen::Socket,
};

/// Connections that wait for the services.
const WAITING: usize = 128;

/// A moment after an error of the system, such as too many open files.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// A connection that is served.
pub(super) struct Connection {
    stream: Stream,
    peer: Peer,
    /// Until when it must have shown a token; `None` once it has.
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// What is accepted, on its way to the services.
pub(super) type Connections = mpsc::Receiver<io::Result<Connection>>;

/// Accepts on a socket for as long as the future is polled; the connections come out of the receiver.
pub(super) fn accept(socket: Socket, limits: Limits) -> (impl Future<Output = Infallible>, Connections) {
    let (sender, connections) = mpsc::channel(WAITING);
    (accept_all(socket, limits, sender), connections)
}

async fn accept_all(socket: Socket, limits: Limits, sender: mpsc::Sender<io::Result<Connection>>) -> Infallible {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let (stream, address, tls) = match next(&socket).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(peer = ?address, most = limits.connections, "too many connections: one was closed");
            continue;
        };
        let deadline = Instant::now() + limits.proof_wait;
        let sender = sender.clone();
        tokio::spawn(async move {
            let stream = match (stream, tls) {
                (Stream::Tcp(stream), Some(tls)) => match shake(&tls, stream, deadline).await {
                    Ok(stream) => Stream::Tls(Box::new(stream)),
                    Err(reason) => {
                        tracing::info!(peer = ?address, reason, "a TLS handshake failed");
                        return;
                    }
                },
                (stream, _) => stream,
            };
            let peer = Peer::new(address);
            let deadline = address.map(|_| Box::pin(sleep_until(deadline)));
            // The listener may have ended meanwhile.
            let _ = sender.send(Ok(Connection { stream, peer, deadline, _place: place })).await;
        });
    }
}

type Accepted = (Stream, Option<IpAddr>, Option<TlsAcceptor>);

async fn next(socket: &Socket) -> io::Result<Accepted> {
    match socket {
        Socket::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Ok((Stream::Unix(stream), None, None))
        }
        Socket::Tcp(listener, tls) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Stream::Tcp(stream), Some(address.ip()), tls.clone()))
        }
    }
}

async fn shake(tls: &TlsAcceptor, stream: TcpStream, deadline: Instant) -> Result<TlsStream<TcpStream>, String> {
    let mut start = [0; 3];
    let shaken = timeout_at(deadline, async {
        // An HTTP/2 client that speaks no TLS begins so.
        if stream.peek(&mut start).await? == start.len() && start == *b"PRI" {
            return Err(io::Error::other("the peer speaks plain text; it must write https://"));
        }
        tls.accept(stream).await
    });
    match shaken.await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

impl Connection {
    /// Whether its time to show a token is over.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        if self.peer.is_proven() {
            self.deadline = None;
        }
        let late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready());
        if late {
            tracing::info!(peer = ?self.peer.address, "a connection showed no token in time and is closed");
        }
        late
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_late(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
