//! NCCL's functions, as a table loaded at run time, and communicators that free themselves.
//!
//! Everything is non-blocking: a call may return "in progress", and the communicator's own state is asked until it is
//! done, so that a deadline or an abort ends every wait. The library stays loaded for good, since its threads do.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    ptr,
    sync::Arc,
};

use libloading::Library;

use super::search;
use crate::CollectiveError;

pub(super) type Stream = *mut c_void;
type Comm = *mut c_void;

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const BYTES: c_int = 1;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclConfig_t` as of NCCL 2.18; later versions read `size` and `version` and take their defaults for the rest.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    fn non_blocking() -> Self {
        // `NCCL_CONFIG_UNDEF_INT`: the library's default.
        let undefined = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21801,
            blocking: 0,
            cga_cluster_size: undefined,
            min_ctas: undefined,
            max_ctas: undefined,
            net_name: ptr::null(),
            split_share: undefined,
        }
    }
}

type InitRank = unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
type Split = unsafe extern "C" fn(Comm, c_int, c_int, *mut Comm, *mut Config) -> c_int;
type AllReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int;
type Broadcast = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
type SendTo = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
type ReceiveFrom = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
type OnComm = unsafe extern "C" fn(Comm) -> c_int;

/// The functions in use.
pub(super) struct Nccl {
    pub(super) name: PathBuf,
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    init_rank: InitRank,
    split: Split,
    get_async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    abort: OnComm,
    finalize: OnComm,
    destroy: OnComm,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    all_reduce: AllReduce,
    all_gather: AllGather,
    broadcast: Broadcast,
    send: SendTo,
    receive: ReceiveFrom,
}

/// Reads a function's address. The caller's type must be that of NCCL's header.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, CollectiveError> {
    // SAFETY: as promised by the caller; the library is never unloaded.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    let missing =
        |error: libloading::Error| CollectiveError::Library { library: search::NCCL, reason: error.to_string() };
    found.map(|function| *function).map_err(missing)
}

impl Nccl {
    /// Loads the table; `place` as in [`search::nccl`].
    pub(super) fn load(place: Option<&Path>) -> Result<Arc<Self>, CollectiveError> {
        let found = search::nccl(place)?;
        let library = ManuallyDrop::new(found.library);
        // SAFETY: names and types are those of nccl.h, stable since 2.18.
        unsafe {
            Ok(Arc::new(Self {
                name: found.name,
                get_version: function(&library, "ncclGetVersion")?,
                get_unique_id: function(&library, "ncclGetUniqueId")?,
                get_error_string: function(&library, "ncclGetErrorString")?,
                get_last_error: function(&library, "ncclGetLastError")?,
                init_rank: function(&library, "ncclCommInitRankConfig")?,
                split: function(&library, "ncclCommSplit")?,
                get_async_error: function(&library, "ncclCommGetAsyncError")?,
                abort: function(&library, "ncclCommAbort")?,
                finalize: function(&library, "ncclCommFinalize")?,
                destroy: function(&library, "ncclCommDestroy")?,
                group_start: function(&library, "ncclGroupStart")?,
                group_end: function(&library, "ncclGroupEnd")?,
                all_reduce: function(&library, "ncclAllReduce")?,
                all_gather: function(&library, "ncclAllGather")?,
                broadcast: function(&library, "ncclBroadcast")?,
                send: function(&library, "ncclSend")?,
                receive: function(&library, "ncclRecv")?,
            }))
        }
    }

    /// `major.minor.patch`.
    pub(super) fn version(&self) -> Result<String, CollectiveError> {
        let mut version = 0;
        // SAFETY: NCCL writes one int.
        self.check("its version", unsafe { (self.get_version)(&raw mut version) })?;
        Ok(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
    }

    /// A new group's id, for all its ranks.
    pub(super) fn unique_id(&self) -> Result<UniqueId, CollectiveError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: NCCL writes 128 bytes.
        self.check("a unique id", unsafe { (self.get_unique_id)(&raw mut id) })?;
        Ok(id)
    }

    /// Begins to connect on the current device. [`Communicator::state`] says when it is done.
    pub(super) fn init(self: &Arc<Self>, id: UniqueId, rank: i32, size: i32) -> Result<Communicator, CollectiveError> {
        let (mut comm, mut config) = (ptr::null_mut(), Config::non_blocking());
        // SAFETY: the pointers are valid for the call; NCCL copies the configuration.
        let result = unsafe { (self.init_rank)(&raw mut comm, size, id, rank, &raw mut config) };
        let communicator = Communicator { nccl: self.clone(), comm };
        self.check("a communicator", result)?;
        Ok(communicator)
    }

    fn check(&self, operation: &'static str, result: c_int) -> Result<(), CollectiveError> {
        if result == SUCCESS || result == IN_PROGRESS {
            return Ok(());
        }
        Err(CollectiveError::Refused { library: "NCCL", operation, reason: self.words(result) })
    }

    /// NCCL's own words for a result, and for what happened last.
    fn words(&self, result: c_int) -> String {
        // SAFETY: both give texts that stay, or null.
        let (kind, last) = unsafe { ((self.get_error_string)(result), (self.get_last_error)(ptr::null_mut())) };
        let texts = [kind, last].into_iter().filter(|text| !text.is_null());
        // SAFETY: they are ended by 0.
        let texts = texts.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ")
    }
}

/// How far a communicator is.
pub(super) enum State {
    Done,
    InProgress,
    Failed(String),
}

/// A rank's communicator. Dropping it aborts it; [`Communicator::finish`] ends it in peace.
pub(super) struct Communicator {
    nccl: Arc<Nccl>,
    comm: Comm,
}

// SAFETY: NCCL allows a communicator to be used from any thread, one at a time.
unsafe impl Send for Communicator {}

impl Communicator {
    pub(super) fn state(&self) -> State {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives; NCCL writes one int.
        let asked = unsafe { (self.nccl.get_async_error)(self.comm, &raw mut state) };
        match if asked == SUCCESS { state } else { asked } {
            SUCCESS => State::Done,
            IN_PROGRESS => State::InProgress,
            failed => State::Failed(self.nccl.words(failed)),
        }
    }

    /// Adds device buffers in place.
    ///
    /// # Safety
    /// `numbers` is device memory of `count` floats that outlives the stream's work.
    pub(super) unsafe fn all_reduce(&self, numbers: *mut c_void, count: usize, stream: Stream) -> Result<(), String> {
        // SAFETY: as promised by the caller.
        self.said(unsafe { (self.nccl.all_reduce)(numbers, numbers, count, FLOAT32, SUM, self.comm, stream) })
    }

    /// Gathers parts of `share` bytes in place; `own` points into `parts`.
    ///
    /// # Safety
    /// `parts` is device memory of `share` bytes for every rank that outlives the stream's work.
    pub(super) unsafe fn all_gather(
        &self,
        own: *const c_void,
        parts: *mut c_void,
        share: usize,
        stream: Stream,
    ) -> Result<(), String> {
        // SAFETY: as promised by the caller.
        self.said(unsafe { (self.nccl.all_gather)(own, parts, share, BYTES, self.comm, stream) })
    }

    /// Broadcasts bytes in place.
    ///
    /// # Safety
    /// `bytes` is device memory of `count` bytes that outlives the stream's work.
    pub(super) unsafe fn broadcast(
        &self,
        bytes: *mut c_void,
        count: usize,
        root: i32,
        stream: Stream,
    ) -> Result<(), String> {
        // SAFETY: as promised by the caller.
        self.said(unsafe { (self.nccl.broadcast)(bytes, bytes, count, BYTES, root, self.comm, stream) })
    }

    /// Carries sends and receives, each a device buffer, its bytes and the peer, as one group.
    ///
    /// # Safety
    /// All buffers are device memory of their lengths that outlives the stream's work.
    pub(super) unsafe fn exchange(
        &self,
        sends: &[(*mut c_void, usize, i32)],
        receives: &[(*mut c_void, usize, i32)],
        stream: Stream,
    ) -> Result<(), String> {
        // SAFETY: as promised by the caller; every start has its end, after a failure too.
        unsafe {
            self.said((self.nccl.group_start)())?;
            let mut result = Ok(());
            for &(buffer, bytes, peer) in sends {
                result =
                    result.and_then(|()| self.said((self.nccl.send)(buffer, bytes, BYTES, peer, self.comm, stream)));
            }
            for &(buffer, bytes, peer) in receives {
                let receive = self.nccl.receive;
                result = result.and_then(|()| self.said(receive(buffer, bytes, BYTES, peer, self.comm, stream)));
            }
            let ended = self.said((self.nccl.group_end)());
            result.and(ended)
        }
    }

    /// Begins to make a communicator of the ranks with this color. This one's state says when it is done, then the
    /// new one may be used.
    pub(super) fn split(&self, color: i32, key: i32, made: &mut Comm) -> Result<(), String> {
        let mut config = Config::non_blocking();
        // SAFETY: the pointers are valid for the call; `made` lives until the caller has asked for the state.
        self.said(unsafe { (self.nccl.split)(self.comm, color, key, std::ptr::from_mut(made), &raw mut config) })
    }

    /// The communicator that [`Communicator::split`] made.
    pub(super) fn adopt(&self, made: Comm) -> Self {
        Self { nccl: self.nccl.clone(), comm: made }
    }

    /// Begins the peaceful end: what is in flight is finished.
    pub(super) fn finalize(&self) -> Result<(), String> {
        // SAFETY: the communicator lives.
        self.said(unsafe { (self.nccl.finalize)(self.comm) })
    }

    /// Frees a finalized communicator.
    pub(super) fn destroy(mut self) {
        let comm = std::mem::replace(&mut self.comm, ptr::null_mut());
        // SAFETY: it is used no more. The result has no receiver.
        let _ = unsafe { (self.nccl.destroy)(comm) };
    }

    fn said(&self, result: c_int) -> Result<(), String> {
        if result == SUCCESS || result == IN_PROGRESS { Ok(()) } else { Err(self.nccl.words(result)) }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: it is used no more; abort ends what is in flight and frees it.
            let _ = unsafe { (self.nccl.abort)(self.comm) };
        }
    }
}
