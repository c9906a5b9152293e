//! What a certificate says of itself, and whether it counts now.

use std::{net::IpAddr, path::Path};

use time::{Duration, OffsetDateTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::CertificateError;

/// A certificate that ends within so many days is spoken of at each start.
pub const SOON_DAYS: i64 = 30;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// It counts from then,
    pub from: OffsetDateTime,
    /// until then,
    pub until: OffsetDateTime,
    /// for these host names and addresses.
    pub names: Vec<String>,
}

impl Facts {
    /// Reads a certificate in DER form.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| "it is no X.509 certificate".to_owned())?;
        let time = |stamp: i64| OffsetDateTime::from_unix_timestamp(stamp).map_err(|error| error.to_string());
        let validity = certificate.validity();
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let names = alternatives.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
        Ok(Self { from: time(validity.not_before.timestamp())?, until: time(validity.not_after.timestamp())?, names })
    }

    /// Of the certificate in this file, which must count now; says in the log when it does not for long.
    ///
    /// # Errors
    /// When it is none, or out of its time.
    pub fn in_time(path: &Path, der: &[u8]) -> Result<Self, CertificateError> {
        let facts = Self::of(der).map_err(|problem| CertificateError::wrong(path, problem))?;
        let left = facts.left(OffsetDateTime::now_utc());
        let left = left.map_err(|when| CertificateError::Expired { path: path.to_owned(), when })?;
        if left < Duration::days(SOON_DAYS) {
            tracing::warn!(
                days = left.whole_days(), certificate = %path.display(),
                "the certificate expires soon: `graftwork cert FOLDER --renew`"
            );
        }
        Ok(facts)
    }

    /// For how long it counts still, or since when it does not, or from when on.
    fn left(&self, now: OffsetDateTime) -> Result<Duration, String> {
        if now > self.until {
            return Err(format!("has expired on {}", self.until.date()));
        }
        if now < self.from {
            return Err(format!("counts only from {} on", self.from.date()));
        }
        Ok(self.until - now)
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn made(from: OffsetDateTime, until: OffsetDateTime) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned(), "10.0.0.7".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (from, until);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_counts_within_its_time_alone() {
        let now = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
        let (from, until) = (now - Duration::days(3), now + Duration::days(40));
        let facts = Facts::of(&made(from, until)).unwrap();
        assert_eq!(facts, Facts { from, until, names: vec!["a.example".to_owned(), "10.0.0.7".to_owned()] });
        assert_eq!(facts.left(now), Ok(Duration::days(40)));
        assert_eq!(facts.left(until), Ok(Duration::ZERO));
        assert_eq!(facts.left(until + Duration::SECOND), Err("has expired on 2026-10-31".to_owned()));
        assert_eq!(facts.left(from - Duration::SECOND), Err("counts only from 2026-09-18 on".to_owned()));
    }

    #[test]
    fn what_is_out_of_time_or_none_is_refused_with_its_file() {
        let (path, now) = (Path::new("worker.pem"), OffsetDateTime::now_utc());
        let said = |der: &[u8]| Facts::in_time(path, der).unwrap_err().to_string();
        let old = said(&made(now - Duration::days(9), now - Duration::days(1)));
        let date = (now - Duration::days(1)).date();
        assert_eq!(
            old,
            format!("the certificate worker.pem has expired on {date}: renew it with `graftwork cert FOLDER --renew`")
        );
        assert!(said(&made(now + Duration::days(1), now + Duration::days(9))).contains("counts only from"));
        assert_eq!(said(b"nonsense"), "worker.pem: it is no X.509 certificate");
        Facts::in_time(path, &made(now, now + Duration::days(9))).unwrap();
    }
}
