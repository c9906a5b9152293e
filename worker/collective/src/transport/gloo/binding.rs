//! The C face of `shim.h`, and the rendezvous as its callbacks.
//!
//! No panic leaves a callback. A handle may be aborted from any thread; everything else belongs to its owner.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    slice,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::{
    CollectiveError,
    form::Meeting,
    rendezvous::whole_ms,
    transport::{Fault, left},
};

/// Long enough for Gloo's messages, which name files and addresses.
const MESSAGE_BYTES: usize = 512;

const OK: c_int = 0;
const ABORTED: c_int = 1;
const DEADLINE: c_int = 2;

#[repr(C)]
struct Store {
    user: *mut c_void,
    set: unsafe extern "C" fn(*mut c_void, *const c_char, usize, *const u8, usize) -> c_int,
    get: unsafe extern "C" fn(*mut c_void, *const c_char, usize, i64, *mut c_void, Deliver) -> c_int,
    add: unsafe extern "C" fn(*mut c_void, *const c_char, usize, i64, *mut i64) -> c_int,
    release: unsafe extern "C" fn(*mut c_void),
}

type Deliver = unsafe extern "C" fn(*mut c_void, *const u8, usize);

/// Bytes to or from a peer, as `graftwork_move`.
#[repr(C)]
pub(super) struct Move {
    pub(super) peer: i32,
    pub(super) tag: i32,
    pub(super) bytes: *mut u8,
    pub(super) size: usize,
}

#[repr(C)]
struct Group {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn graftwork_gloo_form(
        store: Store,
        address: *const c_char,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        group: *mut *mut Group,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn graftwork_gloo_exchange(
        group: *mut Group,
        sends: *const Move,
        send_count: usize,
        receives: *const Move,
        receive_count: usize,
        timeout_ms: i64,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn graftwork_gloo_all_reduce(
        group: *mut Group,
        numbers: *mut f32,
        count: i64,
        timeout_ms: i64,
        message: *mut c_char,
        message_size: usize,
    ) -> c_int;
    fn graftwork_gloo_abort(group: *mut Group);
    fn graftwork_gloo_free(group: *mut Group);
    fn graftwork_gloo_library(path: *mut c_char, path_size: usize);
}

/// Frees the group when its last holder lets go.
pub(super) struct Handle(*mut Group);

// SAFETY: the group's own mutex guards what `graftwork_gloo_abort` touches, the one function that other threads call;
// the others are called by one owner at a time.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// What the callbacks need; C++ owns it until it calls [`release`].
struct User {
    meeting: Meeting,
    failed: Arc<Mutex<Option<CollectiveError>>>,
}

struct Message([c_char; MESSAGE_BYTES]);

impl Message {
    fn new() -> Self {
        Self([0; MESSAGE_BYTES])
    }

    fn text(&self) -> String {
        // SAFETY: the shim ends what it writes by 0, and the buffer began as zeros.
        let text = unsafe { CStr::from_ptr(self.0.as_ptr()) }.to_string_lossy();
        text.lines().next().unwrap_or_default().trim().to_owned()
    }

    fn fault(&self, result: c_int) -> Result<(), Fault> {
        match result {
            OK => Ok(()),
            ABORTED => Err(Fault::Aborted),
            DEADLINE => Err(Fault::Deadline),
            _ => Err(Fault::PeerLost(self.text())),
        }
    }
}

/// Connects to all members; blocks, at most until the meeting's deadline.
pub(super) fn form(meeting: &Meeting, address: &str) -> Result<Handle, CollectiveError> {
    let failed = Arc::new(Mutex::new(None));
    let user = Box::new(User { meeting: meeting.clone(), failed: failed.clone() });
    let store = Store { user: Box::into_raw(user).cast(), set, get, add, release };
    let bound = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let address = CString::new(address).map_err(|_| meeting.lost("an address holds a 0"))?;
    let (mut group, mut message) = (std::ptr::null_mut(), Message::new());
    // SAFETY: the pointers are valid for the call; the store is handed over with its `release`.
    let result = unsafe {
        let (rank, size, timeout_ms) = (bound(meeting.rank), bound(meeting.size), timeout_ms(meeting.until));
        let text = message.0.as_mut_ptr();
        graftwork_gloo_form(store, address.as_ptr(), rank, size, timeout_ms, &raw mut group, text, MESSAGE_BYTES)
    };
    if result == OK {
        return Ok(Handle(group));
    }
    meeting.check()?;
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    Err(failed.unwrap_or_else(|| if result == DEADLINE { meeting.late() } else { meeting.lost(message.text()) }))
}

/// Whole milliseconds until then, at least 1: Gloo takes 0 for its own default.
fn timeout_ms(until: Instant) -> i64 {
    // A bound that Gloo's clock arithmetic holds: a year.
    i64::try_from(whole_ms(left(until)).clamp(1, 31_536_000_000)).unwrap_or(1)
}

impl Handle {
    pub(super) fn exchange(&self, sends: &[Move], receives: &[Move], until: Instant) -> Result<(), Fault> {
        let mut message = Message::new();
        // SAFETY: the moves point to buffers that the caller has borrowed for the call, receives exclusively; the shim
        // lets go of them before it returns.
        let result = unsafe {
            let (out, into) = (sends.as_ptr(), receives.as_ptr());
            let (text, timeout) = (message.0.as_mut_ptr(), timeout_ms(until));
            graftwork_gloo_exchange(self.0, out, sends.len(), into, receives.len(), timeout, text, MESSAGE_BYTES)
        };
        message.fault(result)
    }

    pub(super) fn all_reduce(&self, numbers: &mut [f32], until: Instant) -> Result<(), Fault> {
        let mut message = Message::new();
        let count = i64::try_from(numbers.len()).unwrap_or(i64::MAX);
        // SAFETY: the pointer and length are one borrowed slice; the shim writes it only before it returns.
        let result = unsafe {
            let (text, timeout) = (message.0.as_mut_ptr(), timeout_ms(until));
            graftwork_gloo_all_reduce(self.0, numbers.as_mut_ptr(), count, timeout, text, MESSAGE_BYTES)
        };
        message.fault(result)
    }

    pub(super) fn abort(&self) {
        // SAFETY: the group lives as long as its handle.
        unsafe { graftwork_gloo_abort(self.0) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: this is the last holder, and no call runs.
        unsafe { graftwork_gloo_free(self.0) }
    }
}

/// The libtorch that is in use.
pub(super) fn library() -> Option<PathBuf> {
    let mut path = Message::new();
    // SAFETY: the buffer is as long as is said.
    unsafe { graftwork_gloo_library(path.0.as_mut_ptr(), MESSAGE_BYTES) };
    Some(path.text()).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Runs a callback's body; errors and panics become 1, and the first error is kept.
///
/// # Safety
/// `user` is a [`User`] that lives, and the key's pointer and length are one readable text.
unsafe fn answer(
    user: *mut c_void,
    (key, key_size): (*const c_char, usize),
    act: impl FnOnce(&Meeting, &str) -> Result<(), CollectiveError>,
) -> c_int {
    // SAFETY: as promised by the caller.
    let (user, key) = unsafe { (&*user.cast::<User>(), slice::from_raw_parts(key.cast::<u8>(), key_size)) };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let key = format!("gloo/{}", String::from_utf8_lossy(key));
        act(&user.meeting, &key).map_err(|error| {
            user.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        })
    }));
    c_int::from(!matches!(result, Ok(Ok(()))))
}

unsafe extern "C" fn set(
    user: *mut c_void,
    key: *const c_char,
    key_size: usize,
    value: *const u8,
    value_size: usize,
) -> c_int {
    // SAFETY: the shim passes its own user, a key and a value that live for the call. An empty value may be null.
    unsafe {
        let value = if value_size == 0 { &[] } else { slice::from_raw_parts(value, value_size) };
        answer(user, (key, key_size), |meeting, key| meeting.set(key, value))
    }
}

unsafe extern "C" fn get(
    user: *mut c_void,
    key: *const c_char,
    key_size: usize,
    _timeout_ms: i64,
    into: *mut c_void,
    deliver: Deliver,
) -> c_int {
    // SAFETY: as above; `deliver` copies the value into the shim's `into`. The meeting's deadline is the one that
    // counts, so the shim's is not read.
    unsafe {
        answer(user, (key, key_size), |meeting, key| {
            let value = meeting.get(key)?;
            deliver(into, value.as_ptr(), value.len());
            Ok(())
        })
    }
}

unsafe extern "C" fn add(user: *mut c_void, key: *const c_char, key_size: usize, amount: i64, sum: *mut i64) -> c_int {
    // SAFETY: as above; `sum` is the shim's own variable.
    unsafe {
        answer(user, (key, key_size), |meeting, key| {
            *sum = meeting.add(key, amount)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn release(user: *mut c_void) {
    // SAFETY: the shim calls this once, after the last callback; the pointer came from `Box::into_raw`.
    drop(unsafe { Box::from_raw(user.cast::<User>()) });
}
