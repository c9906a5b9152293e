//! What a process sets up once around libtorch: threads, memory and devices; and how it ends. It computes nothing.

use std::{ffi::c_int, io::Write as _, sync::Once};

use tch::{Device, Kind, Tensor};

/// Makes the calling thread ready to compute, as every thread must be before its first tensor: it gets one libtorch thread,
/// since parallelism is one lane a thread, never inside a product. The first one makes the process ready, and others wait
/// for it.
pub fn use_one_thread() {
    static PROCESS: Once = Once::new();
    tch::set_num_threads(1);
    PROCESS.call_once(|| {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        keep_freed_memory();
        wake_math_library();
    });
}

/// Makes the first calls of the math library under libtorch while no other thread computes. During them it chooses its
/// functions for the processor, and guards the choice against nobody: where two threads came to their first tanh at the
/// same time, one of them got other last bits, with AVX-512 in 7 of 1,000 processes.
fn wake_math_library() {
    let ones = Tensor::ones([16, 16], (Kind::Float, Device::Cpu));
    drop(tch::no_grad(|| ones.matmul(&ones).tanh()));
}

/// Makes the allocator keep what a lane has freed for the next lane. Otherwise it gives memory back after each lane and
/// asks for it anew, and the kernel's zeroing of fresh pages takes 5 % of a step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    /// Free memory at the end of a heap that is kept.
    const TRIM_THRESHOLD: (c_int, c_int) = (-1, 256 << 20);
    /// Size from which an allocation is a mapping of its own; the allocator takes no larger one.
    const MAPPING_THRESHOLD: (c_int, c_int) = (-3, 32 << 20);
    for (parameter, value) in [TRIM_THRESHOLD, MAPPING_THRESHOLD] {
        // SAFETY: the C library's own function, which takes these two numbers and sets one of its own under its lock;
        // it refuses what it does not know.
        unsafe { mallopt(parameter, value) };
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
    use std::{
        process::{Command, Output},
        sync::Barrier,
        time::{Duration, Instant},
    };

    use super::*;

    /// Set for the process that ends.
    const ENDS: &str = "GRAFTWORK_TEST_ENDS";
    /// Set for the process that computes nothing before it forks.
    const FORKS: &str = "GRAFTWORK_TEST_FORKS";

    /// Runs one of these tests alone in a new process, where a variable is set.
    fn again(test: &str, variable: &str, value: &str) -> Output {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", &format!("process::tests::{test}"), "--nocapture"]);
        again.env(variable, value).output().unwrap()
    }

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
            let output = again("a_process_ends_without_what_runs_at_an_exit", ENDS, how);
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(ended("at once"), (Some(7), String::new()));
        assert_eq!(ended("in order"), (Some(7), "what runs at an exit ran".to_owned()));
    }

    /// What a head does with its rows, as bits.
    fn first_numbers() -> Vec<u32> {
        let ramp = |rows: i64, columns: i64| {
            let ramp = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu)).view([rows, columns]);
            ramp.remainder(37.0) / 37.0 - 0.5
        };
        let out = (ramp(16, 32).linear(&ramp(32, 32), None::<&Tensor>) * 0.1).tanh();
        crate::transfer::to_host(&out).into_iter().map(f32::to_bits).collect()
    }

    /// Whether two threads whose first numbers come at nearly the same time have the ones that come later.
    fn threads_agree(apart: Duration) -> bool {
        let together = Barrier::new(2);
        let thread = |wait: Duration| {
            use_one_thread();
            together.wait();
            let since = Instant::now();
            while since.elapsed() < wait {}
            first_numbers()
        };
        let both = std::thread::scope(|scope| {
            [Duration::ZERO, apart].map(|wait| scope.spawn(move || thread(wait))).map(|thread| thread.join().unwrap())
        });
        let later = first_numbers();
        both.iter().all(|numbers| *numbers == later)
    }

    #[test]
    fn the_first_numbers_of_two_threads_are_those_of_all_later_ones() {
        unsafe extern "C" {
            fn fork() -> c_int;
            fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int;
        }
        if std::env::var_os(FORKS).is_none() {
            let output = again("the_first_numbers_of_two_threads_are_those_of_all_later_ones", FORKS, "1");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        for number in 0..1000 {
            // SAFETY: no thread of this process but this one has begun anything, so the new process may do all that it could;
            // it ends without what belongs to this one.
            let process = unsafe { fork() };
            if process == 0 {
                let agreed = std::panic::catch_unwind(|| threads_agree(Duration::from_nanos(number % 40 * 250)));
                end_process(i32::from(agreed.ok() != Some(true)));
            }
            let mut status = -1;
            // SAFETY: the process is a child of this one, and the status is written before the call returns.
            assert_eq!(unsafe { waitpid(process, &raw mut status, 0) }, process);
            assert_eq!(status, 0, "process {number}");
        }
    }
}
