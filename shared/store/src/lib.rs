//! Bytes that outlive a process: base models and adapters fetched into a cache, and the hub folder that holds releases.
//!
//! Everything here is all or nothing. A download becomes visible under its final name when every file of it is complete
//! and checked; a release becomes visible when every byte of it is on the disk. A kill at any point leaves what was
//! there before. Nothing here knows libtorch, gRPC or the scheduler, and no credential is ever written or logged:
//! callers name the environment variable that holds it.

mod disk;
mod error;
mod fetch;
mod hub;

pub use disk::{free_bytes, write_atomically};
pub use error::StoreError;
pub use fetch::{
    Cache, Fetched, NoUploads, Uploads, adapter_credentials, adapter_files, base_model_files, fetch_adapter,
    fetch_base_model, fetch_uploaded_file,
};
pub use hub::{Found, Hub, RECORD_FILE, Release};
