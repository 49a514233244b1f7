//! What the kernel knows of this process (proc(5)).

use std::fs;

/// `USER_HZ`, the unit of times in `/proc/PID/stat`: 100 on every Linux we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at this process.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) cpu_seconds: f64,
    pub(super) threads: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: Option<u64>,
    pub(super) start_time_seconds: f64,
}

impl Process {
    /// `None` where there is no `/proc`.
    pub(super) fn look() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        // One of them is the directory itself.
        let open_fds = (fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self::read(&stat, &status, &boot, open_fds, limit)
    }

    fn read(stat: &str, status: &str, boot: &str, open_fds: u64, max_fds: Option<u64>) -> Option<Self> {
        // The name, field 2, may hold spaces and parentheses; counting begins after its last one, with field 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
        let resident_kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        let boot_seconds: u64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Some(Self {
            resident_bytes: resident_kib * 1024,
            cpu_seconds: seconds(field(14)? + field(15)?),
            threads: field(20)?,
            open_fds,
            max_fds,
            start_time_seconds: boot_seconds as f64 + seconds(field(22)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Process;

    #[test]
    fn the_kernels_figures_are_read_whatever_the_process_is_called() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 16 17 0 4 250 50 3 7 20 0 12 0 1000 5558272 1125";
        let status = "Name:\ta\nVmRSS:\t    2048 kB\nThreads:\t12\n";
        let process = Process::read(stat, status, "cpu 1 2\nbtime 1700000000\n", 9, Some(64)).unwrap();
        assert_eq!(
            process,
            Process {
                resident_bytes: 2 << 20,
                cpu_seconds: 3.0,
                threads: 12,
                open_fds: 9,
                max_fds: Some(64),
                start_time_seconds: 1_700_000_010.0,
            }
        );
        assert_eq!(Process::read("7 (a) S", status, "btime 1\n", 9, None), None);
        assert!(Process::look().unwrap().resident_bytes > 1 << 20);
    }
}
