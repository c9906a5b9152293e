//! What a process sets up once around libtorch: threads, memory and devices; and how it ends. It computes nothing.

use std::{ffi::c_int, io::Write as _};

/// Gives the calling thread one libtorch thread: parallelism is one lane a thread, never inside a product.
pub fn use_one_thread() {
    tch::set_num_threads(1);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    keep_freed_memory();
}

/// Makes the allocator keep what a lane has freed for the next lane. Otherwise it gives memory back after each lane and
/// asks for it anew, and the kernel's zeroing of fresh pages takes 5 % of a step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    use std::sync::atomic::{AtomicBool, Ordering};

    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    /// Free memory at the end of a heap that is kept.
    const TRIM_THRESHOLD: (c_int, c_int) = (-1, 256 << 20);
    /// Size from which an allocation is a mapping of its own; the allocator takes no larger one.
    const MAPPING_THRESHOLD: (c_int, c_int) = (-3, 32 << 20);
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        for (parameter, value) in [TRIM_THRESHOLD, MAPPING_THRESHOLD] {
            // SAFETY: the C library's own function, which takes these two numbers and sets one of its own under its
            // lock; it refuses what it does not know.
            unsafe { mallopt(parameter, value) };
        }
    }
}

/// Ends the process at once. Threads may still be inside libtorch, and an ordinary exit would take its globals from under
/// them while they, and whoever sends on what they compute, go on.
pub fn end_process(code: i32) -> ! {
    unsafe extern "C" {
        fn _exit(code: c_int) -> !;
    }
    // Whoever reads it may be gone.
    let _ = std::io::stdout().flush();
    // SAFETY: the C library's own function, which takes any number and runs nothing of this process.
    unsafe { _exit(code) }
}

/// Number of CUDA devices that can be used; 0 where the CUDA part of libtorch is not loaded or finds no driver.
///
/// The CUDA part has to be loaded before the first call: libtorch keeps the answer for good.
pub fn cuda_devices() -> usize {
    if tch::Cuda::is_available() { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set for the process that ends.
    const ENDS: &str = "GRAFTWORK_TEST_ENDS";

    extern "C" fn at_exit() {
        let _ = std::io::stderr().write_all(b"what runs at an exit ran");
    }

    #[test]
    fn a_process_ends_without_what_runs_at_an_exit() {
        unsafe extern "C" {
            fn atexit(run: extern "C" fn()) -> c_int;
        }
        if let Some(how) = std::env::var_os(ENDS) {
            // SAFETY: the C library's own function; what it is to call lives as long as the program.
            assert_eq!(unsafe { atexit(at_exit) }, 0);
            if how == "at once" { end_process(7) } else { std::process::exit(7) }
        }
        let ended = |how: &str| {
            let mut again = Command::new(std::env::current_exe().unwrap());
            let again = again.args(["--exact", "process::tests::a_process_ends_without_what_runs_at_an_exit"]);
            let output = again.arg("--nocapture").env(ENDS, how).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(ended("at once"), (Some(7), String::new()));
        assert_eq!(ended("in order"), (Some(7), "what runs at an exit ran".to_owned()));
    }
}
