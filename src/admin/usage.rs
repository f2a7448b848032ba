//! What the process takes of the machine, as the kernel says. What it does not say is left out: a forwarder that
//! became another user may not count its own file descriptors.

use std::fs;

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

/// The moment's figures.
#[derive(Debug)]
pub(super) struct Usage {
    /// In user and kernel mode.
    pub processor_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub open_files: Option<usize>,
    pub most_files: Option<u64>,
}

impl Usage {
    pub(super) fn read() -> Self {
        let read = |file| fs::read_to_string(file).ok();
        Self {
            processor_seconds: read("/proc/self/stat").and_then(|stat| seconds(&stat, system(SysconfVar::CLK_TCK)?)),
            resident_bytes: read("/proc/self/statm").and_then(|statm| bytes(&statm, system(SysconfVar::PAGE_SIZE)?)),
            // Looking takes one.
            open_files: fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1)),
            most_files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        }
    }
}

fn system(variable: SysconfVar) -> Option<u32> {
    sysconf(variable).ok().flatten().and_then(|value| u32::try_from(value).ok())
}

/// `utime` and `stime`, the 14th and 15th field (proc(5)). The second is a name that may hold anything, in brackets.
fn seconds(stat: &str, ticks: u32) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11).map(|field| field.parse::<u32>().ok());
    let (user, kernel) = (fields.next()??, fields.next()??);
    Some((f64::from(user) + f64::from(kernel)) / f64::from(ticks))
}

/// The second field, in pages (proc(5)).
fn bytes(statm: &str, page: u32) -> Option<u64> {
    Some(statm.split(' ').nth(1)?.parse::<u64>().ok()?.saturating_mul(u64::from(page)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read_whatever_the_process_is_called() {
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 9 0 0 0 250 150 0 0 20 0 3 0 99 1 1";
        assert_eq!(seconds(stat, 100), Some(4.0));
        assert_eq!(bytes("900 25 7 1 0 40 0", 4096), Some(102_400));
        assert_eq!((seconds("", 100), bytes("", 4096)), (None, None));
    }

    #[test]
    fn this_process_takes_something() {
        let usage = Usage::read();
        assert!(usage.processor_seconds.is_some() && usage.resident_bytes > Some(0), "{usage:?}");
        assert!(
            usage.open_files > Some(2) && usage.most_files >= usage.open_files.map(|files| files as u64),
            "{usage:?}"
        );
    }
}
