//! The coordinator's own blobs, where its planner and publisher read what users uploaded.

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use graftwork_shared::digest::Digest;
use graftwork_store::{StoreError, Uploads};

use super::{BlobError, BlobStore};

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

impl Uploads for BlobStore {
    fn read(&self, blob: Digest) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let store = self.clone();
        let start = async move { blocking(move || store.reader(blob)).await };
        let pieces = futures::stream::once(start).flat_map(|opened| {
            futures::stream::try_unfold(opened, |reader| async move {
                let mut reader = reader?;
                let next = blocking(move || Ok(reader.next(PIECE_BYTES)?.map(|piece| (Bytes::from(piece), reader))));
                Ok(next.await?.map(|(piece, reader)| (piece, Ok(reader))))
            })
        });
        pieces.boxed()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| StoreError::Upload(error.to_string()))?.map_err(|error| StoreError::Upload(error.to_string()))
}
