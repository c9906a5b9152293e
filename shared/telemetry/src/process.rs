//! What every program tells of itself, under the names that Prometheus' own libraries use.

use std::{fs, time::Duration};

use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};

use crate::Exposition;

/// Adds memory, processor time and open files of this process. What the system does not tell is left out.
pub fn add_process(text: &mut Exposition) {
    if let Some(bytes) = resident_bytes() {
        text.gauge("process_resident_memory_bytes", "Memory of the process.", bytes as f64);
    }
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    if let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(cpu.tv_sec), u32::try_from(cpu.tv_nsec)) {
        let seconds = Duration::new(seconds, nanoseconds).as_secs_f64();
        text.counter("process_cpu_seconds", "Processor time of the process.", seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Open files of the process.", open.count() as f64);
    }
}

fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_open_files() {
        let mut text = Exposition::new();
        add_process(&mut text);
        let text = text.text();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_open_fds") >= 3.0);
    }
}
