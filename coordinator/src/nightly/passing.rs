//! Which errors may pass by themselves, such as a full disk or a store that is away for a while.
//!
//! Only what the system says of a file or a connection may pass. What cannot be read since it is damaged, gone or not as this
//! program writes it is the same at the next try, and whoever meets it must come to an end.

use std::io::{Error, ErrorKind};

use graftwork_store::StoreError;

use crate::server::HistoryError;

/// Whether doing the same once more, later, may succeed.
pub(super) fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return kind_may_pass(error.kind());
        }
        if cause.is::<HistoryError>() {
            return true;
        }
        match cause.downcast_ref::<StoreError>() {
            Some(StoreError::File { error, .. }) => kind_may_pass(error.kind()),
            Some(StoreError::DiskFull(_) | StoreError::Network { .. }) => true,
            _ => false,
        }
    })
}

/// A file that is not there does not come back, and one of another form does not change.
fn kind_may_pass(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::UnexpectedEof
            | ErrorKind::Unsupported
    )
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};
    use parquet::errors::ParquetError;

    use super::*;

    #[test]
    fn a_full_disk_passes_and_a_damaged_file_does_not() {
        let full = || Error::from(ErrorKind::StorageFull);
        for passing in [
            anyhow::Error::from(full()),
            anyhow::Error::from(full()).context("the answers"),
            StoreError::DiskFull("/history".into()).into(),
            StoreError::File { path: "/history".into(), error: ErrorKind::StaleNetworkFileHandle.into() }.into(),
            anyhow::Error::from(ParquetError::from(full())).context("writing the answers"),
            Error::from(ErrorKind::PermissionDenied).into(),
        ] {
            assert!(may_pass(&passing), "{passing:?}");
        }
        let gone = std::fs::read("/there/is/no/such/file").context("the answers").unwrap_err();
        let broken = serde_json::from_slice::<u32>(b"{").context("line 1").unwrap_err();
        for lasting in [
            anyhow!("this is a defect of Graftwork"),
            gone,
            broken,
            StoreError::File { path: "/history".into(), error: ErrorKind::NotADirectory.into() }.into(),
            ParquetError::EOF("no page".to_owned()).into(),
        ] {
            assert!(!may_pass(&lasting), "{lasting:?}");
        }
    }
}
