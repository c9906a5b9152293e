//! One encrypted connection to a peer, and messages over it.
//!
//! ```text
//! message   tag u32 │ length u64 │ bytes        little-endian, inside TLS
//! ```
//! Nothing here waits: every call goes as far as the socket lets it and says whether it is done. Bytes are taken off the
//! socket only while a message is expected, so what a peer sends too early waits in the kernel, and slows it down.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Read as _, Write as _},
    sync::Arc,
};

use mio::net::TcpStream;
use rustls::Connection;

/// Ciphertext that is read at once, and plaintext that is encrypted before it is sent: some records of 16 KiB.
const CHUNK_BYTES: usize = 256 << 10;

/// A message's tag and length.
const HEADER_BYTES: usize = 12;

/// See the module's documentation.
pub(super) struct Link {
    pub(super) socket: Arc<TcpStream>,
    pub(super) tls: Connection,
    /// Ciphertext off the socket, of which TLS has not taken `unread` yet.
    raw: Vec<u8>,
    unread: std::ops::Range<usize>,
}

/// Messages on their way to a peer, in their order.
#[derive(Default)]
pub(super) struct Outbox<'a> {
    messages: VecDeque<([u8; HEADER_BYTES], &'a [u8])>,
    /// Of the first one.
    sent: usize,
}

/// Messages that are expected of a peer.
#[derive(Default)]
pub(super) struct Inbox<'a> {
    waiting: Vec<(u32, &'a mut [u8])>,
    header: [u8; HEADER_BYTES],
    /// Of the header, or of the body once there is one.
    got: usize,
    body: Option<&'a mut [u8]>,
}

impl<'a> Outbox<'a> {
    pub(super) fn push(&mut self, tag: u32, bytes: &'a [u8]) {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&tag.to_le_bytes());
        header[4..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.messages.push_back((header, bytes));
    }
}

impl<'a> Inbox<'a> {
    pub(super) fn push(&mut self, tag: u32, bytes: &'a mut [u8]) {
        self.waiting.push((tag, bytes));
    }

    /// The place for the message whose header has come.
    fn open(&mut self) -> Result<&'a mut [u8], String> {
        let (tag, length) = self.header.split_at(4);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let (tag, length) = (number(tag), number(length));
        let place = self.waiting.iter().position(|(waiting, _)| u64::from(*waiting) == tag);
        let (_, bytes) =
            self.waiting.remove(place.ok_or_else(|| format!("it sends a message of tag {tag} out of turn"))?);
        if bytes.len() as u64 == length { Ok(bytes) } else { Err("it sent another length than announced".to_owned()) }
    }
}

impl Link {
    pub(super) fn new(socket: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(CHUNK_BYTES));
        Self { socket: Arc::new(socket), tls, raw: Vec::new(), unread: 0..0 }
    }

    /// Goes on with the handshake; whether it is over.
    pub(super) fn shake(&mut self) -> Result<bool, String> {
        loop {
            if !self.flush()? {
                return Ok(false);
            }
            if !self.tls.is_handshaking() {
                return Ok(true);
            }
            if !self.hear()? {
                return Ok(false);
            }
        }
    }

    /// Sends what it can; whether all of it has left.
    pub(super) fn send(&mut self, outbox: &mut Outbox<'_>) -> Result<bool, String> {
        while let Some((header, bytes)) = outbox.messages.front() {
            if !self.put(&[header, bytes], &mut outbox.sent)? {
                return Ok(false);
            }
            outbox.messages.pop_front();
            outbox.sent = 0;
        }
        Ok(true)
    }

    /// Takes what has come; whether all that is expected is there.
    pub(super) fn receive(&mut self, inbox: &mut Inbox<'_>) -> Result<bool, String> {
        loop {
            if let Some(body) = &mut inbox.body {
                if !self.take(body, &mut inbox.got)? {
                    return Ok(false);
                }
                (inbox.body, inbox.got) = (None, 0);
            }
            if inbox.waiting.is_empty() {
                return Ok(true);
            }
            if !self.take(&mut inbox.header, &mut inbox.got)? {
                return Ok(false);
            }
            (inbox.body, inbox.got) = (Some(inbox.open()?), 0);
        }
    }

    /// Sends two pieces as one, from where it was left; whether they have left.
    pub(super) fn put(&mut self, [first, second]: &[&[u8]; 2], sent: &mut usize) -> Result<bool, String> {
        loop {
            if !self.flush()? {
                return Ok(false);
            }
            let rest =
                [&first[first.len().min(*sent)..], &second[sent.saturating_sub(first.len()).min(second.len())..]];
            if rest.iter().all(|piece| piece.is_empty()) {
                return Ok(true);
            }
            let written = self.tls.writer().write_vectored(&rest.map(IoSlice::new));
            *sent += written.map_err(|error| error.to_string())?;
        }
    }

    /// Fills a buffer from where it was left; whether it is full.
    pub(super) fn take(&mut self, into: &mut [u8], got: &mut usize) -> Result<bool, String> {
        while *got < into.len() {
            match self.tls.reader().read(&mut into[*got..]) {
                Ok(0) => return Err("it has left".to_owned()),
                Ok(bytes) => *got += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.hear()? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(ended(&error)),
            }
        }
        Ok(true)
    }

    /// Sends what TLS has ready; whether all of it has left.
    fn flush(&mut self) -> Result<bool, String> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut &*self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(ended(&error)),
            }
        }
        Ok(true)
    }

    /// Hands TLS some ciphertext; whether there was any. The plaintext before it must have been taken.
    fn hear(&mut self) -> Result<bool, String> {
        if self.unread.is_empty() {
            self.raw.resize(CHUNK_BYTES, 0);
            self.unread = match (&*self.socket).read(&mut self.raw) {
                Ok(0) => return Err("the connection has ended".to_owned()),
                Ok(bytes) => 0..bytes,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(error.kind() == ErrorKind::Interrupted);
                }
                Err(error) => return Err(ended(&error)),
            };
        }
        let taken = self.tls.read_tls(&mut &self.raw[self.unread.clone()]).map_err(|error| error.to_string())?;
        self.unread.start += taken;
        if let Err(error) = self.tls.process_new_packets() {
            // The alert tells the peer why.
            let _ = self.flush();
            return Err(error.to_string());
        }
        Ok(true)
    }
}

fn ended(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            format!("the connection has ended ({error})")
        }
        _ => error.to_string(),
    }
}
