//! Where a coordinator is reached: one form for whoever listens, works or asks.
//!
//! A port without a scheme is plain on loopback and TLS everywhere else. Plain text beyond loopback cannot be said at
//! all: it would show tokens and jobs to the network.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
};

/// The address of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file, for whoever may enter its folder.
    Unix(PathBuf),
    /// Plain text, on loopback alone.
    Http(Host),
    /// TLS.
    Https(Host),
}

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    port: u16,
}

/// A text that is no address of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address of a coordinator: {problem}; write {FORMS}")]
pub struct NotAnAddress {
    text: String,
    problem: &'static str,
}

/// What is allowed.
const FORMS: &str = "unix:///path/to/socket, https://HOST:PORT, or http://127.0.0.1:PORT on loopback";

impl Host {
    /// A host by its name or IP address, without brackets.
    pub fn new(name: impl Into<String>, port: u16) -> Self {
        Self { name: name.into(), port }
    }

    /// Its name or IP address, without brackets: what a certificate must be for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port; 0 lets a listener take a free one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its IP address, if it is written as one; `localhost` is 127.0.0.1.
    pub fn ip(&self) -> Option<IpAddr> {
        if self.name.eq_ignore_ascii_case("localhost") {
            return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        self.name.parse().ok()
    }

    /// Whether only this machine reaches it.
    pub fn is_loopback(&self) -> bool {
        self.ip().is_some_and(|ip| ip.to_canonical().is_loopback())
    }
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let (name, port) = text.rsplit_once(':').ok_or("a port is missing")?;
        let port = port.parse().map_err(|_| "its port is no number up to 65535")?;
        if let Some(inside) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            let six: Result<std::net::Ipv6Addr, _> = inside.parse();
            return six.map(|six| Self::new(six.to_string(), port)).map_err(|_| "[ ] holds no IPv6 address");
        }
        if name.contains(':') {
            return Err("an IPv6 address stands in brackets, as in [::1]:7700");
        }
        let fits = |letter: u8| letter.is_ascii_alphanumeric() || b"-._".contains(&letter);
        if name.is_empty() || !name.bytes().all(fits) {
            return Err("a host is missing, or holds what no host name may");
        }
        Ok(Self::new(name, port))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.contains(':') { write!(f, "[{name}]:{port}") } else { write!(f, "{name}:{port}") }
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = |problem| NotAnAddress { text: text.to_owned(), problem };
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            let whole = path.starts_with('/') && path.len() > 1;
            return whole
                .then(|| Self::Unix(path.into()))
                .ok_or_else(|| wrong("the whole path of the socket is needed"));
        }
        if let Some(host) = text.strip_prefix("https://") {
            return host.parse().map(Self::Https).map_err(wrong);
        }
        if let Some(host) = text.strip_prefix("http://") {
            let host: Host = host.parse().map_err(wrong)?;
            let beyond = "plain text beyond loopback would show tokens and jobs to the network";
            return if host.is_loopback() { Ok(Self::Http(host)) } else { Err(wrong(beyond)) };
        }
        if text.contains("://") {
            return Err(wrong("its scheme is none of unix, https and http"));
        }
        let host: Host = text.parse().map_err(wrong)?;
        Ok(if host.is_loopback() { Self::Http(host) } else { Self::Https(host) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(host) => write!(f, "http://{host}"),
            Self::Https(host) => write!(f, "https://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        text.parse::<Address>().map_or_else(|error| error.problem.to_owned(), |address| address.to_string())
    }

    #[test]
    fn a_port_without_a_scheme_is_plain_on_loopback_and_tls_elsewhere() {
        for (text, meant) in [
            ("localhost:7700", "http://localhost:7700"),
            ("127.3.2.1:7700", "http://127.3.2.1:7700"),
            ("[::1]:7700", "http://[::1]:7700"),
            ("[::ffff:127.0.0.1]:1", "http://[::ffff:127.0.0.1]:1"),
            ("0.0.0.0:7700", "https://0.0.0.0:7700"),
            ("trainer.example:443", "https://trainer.example:443"),
            ("localhost.example:443", "https://localhost.example:443"),
            ("[fd00::7]:1", "https://[fd00::7]:1"),
        ] {
            assert_eq!(read(text), meant);
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["unix:///tmp/a b/socket", "http://127.0.0.1:1", "https://127.0.0.1:1", "https://[fd00::7]:65535"] {
            assert_eq!(read(text), text);
        }
        assert_eq!(read("unix:/x"), "unix:///x");
        assert_eq!(read("https://a.example:1/"), "https://a.example:1");
    }

    #[test]
    fn each_wrong_form_is_told_apart() {
        for (text, problem) in [
            ("", "a port is missing"),
            ("carrier pigeon", "a port is missing"),
            ("carrier pigeon:1", "a host is missing, or holds what no host name may"),
            (":1", "a host is missing, or holds what no host name may"),
            ("https://user@host:1", "a host is missing, or holds what no host name may"),
            ("https://host:1/path", "its port is no number up to 65535"),
            ("host:65536", "its port is no number up to 65535"),
            ("https://host", "a port is missing"),
            ("::1:7700", "an IPv6 address stands in brackets, as in [::1]:7700"),
            ("[nonsense]:1", "[ ] holds no IPv6 address"),
            ("unix:relative", "the whole path of the socket is needed"),
            ("unix://relative/socket", "the whole path of the socket is needed"),
            ("unix:///", "the whole path of the socket is needed"),
            ("ftp://host:1", "its scheme is none of unix, https and http"),
            ("http://10.0.0.1:1", "plain text beyond loopback would show tokens and jobs to the network"),
            ("http://localhost.example:1", "plain text beyond loopback would show tokens and jobs to the network"),
        ] {
            assert_eq!(read(text), problem, "{text}");
        }
        let said = "carrier pigeon".parse::<Address>().unwrap_err().to_string();
        assert!(said.contains("\"carrier pigeon\"") && said.contains("https://HOST:PORT"), "{said}");
    }
}
