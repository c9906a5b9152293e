//! CPU time of the calling thread. Usage is counted by it; nothing decides by it.

use rustix::time::{ClockId, clock_gettime};

/// Seconds of CPU time that the calling thread has used.
pub fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_sleep_does_not() {
        let began = thread_seconds();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let slept = thread_seconds() - began;
        let mut number = 1.0_f64;
        while thread_seconds() - began - slept < 0.001 {
            number = number.sqrt() + 1.0;
        }
        assert!(slept < 0.04 && number.is_finite(), "{slept}");
    }
}
