//! Object stores that break their word about conditional writes.

use std::fmt;

use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory,
    path::Path,
};

/// Writes without the condition that was asked for.
#[derive(Debug)]
pub(in crate::server) struct Careless {
    store: InMemory,
    /// Looks first whether the object is there, and writes a moment later.
    looks: bool,
}

impl Careless {
    /// Ignores conditions.
    pub(in crate::server) fn forgetful() -> Self {
        Self { store: InMemory::new(), looks: false }
    }

    /// Looks, and then writes: whoever looks at the same time wins too.
    pub(in crate::server) fn hasty() -> Self {
        Self { store: InMemory::new(), looks: true }
    }
}

impl fmt::Display for Careless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Careless")
    }
}

#[tonic::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.looks && matches!(options.mode, PutMode::Create) && self.store.head(key).await.is_ok() {
            return Err(Error::AlreadyExists { path: key.to_string(), source: "it is there".into() });
        }
        tokio::task::yield_now().await;
        self.store.put_opts(key, payload, PutOptions { mode: PutMode::Overwrite, ..options }).await
    }

    async fn put_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
