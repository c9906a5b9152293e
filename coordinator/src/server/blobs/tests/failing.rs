//! An object store that fails when a test wants it to.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

/// What is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Request {
    List,
    Look,
    Copy,
    Delete,
}

/// Answers so many requests of a kind, and then no more of them until it is mended.
#[derive(Debug, Default)]
pub(in crate::server) struct Failing {
    store: InMemory,
    left: Mutex<Option<(Request, usize)>>,
}

impl Failing {
    /// From now on it fails after so many requests of this kind.
    pub(in crate::server) fn fail(&self, request: Request, after: usize) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, after));
    }

    pub(in crate::server) fn mend(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Names of all objects.
    pub(in crate::server) async fn names(&self) -> Vec<String> {
        let listed = self.store.list(None);
        listed.map(|object| object.unwrap().location.filename().unwrap().to_owned()).collect().await
    }

    fn asked(&self, request: Request) -> Result<()> {
        match &mut *self.left.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((of, left)) if *of == request => match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(Error::Generic { store: "Failing", source: "it is out of order".into() }),
            },
            _ => {}
        }
        Ok(())
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failing")
    }
}

#[tonic::async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.asked(Request::Look)?;
        self.store.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.asked(Request::Delete) {
            Ok(()) => self.store.delete_stream(keys),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.asked(Request::List) {
            Ok(()) => self.store.list(prefix),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.asked(Request::Copy)?;
        self.store.copy_opts(from, to, options).await
    }
}
