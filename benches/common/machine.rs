//! What the machine tells about itself and about a process: CPU time, memory, load.

use std::{fs, path::PathBuf, process::Command, time::Duration};

/// CPU time of all threads of a process so far. A process that is gone has none.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| on_cpu(thread.path().join("schedstat"))).sum()
}

/// CPU time of the calling thread so far, and of the packets that the kernel handled in its place.
pub(crate) fn own_cpu_time() -> Duration {
    on_cpu("/proc/thread-self/schedstat".into())
}

/// The kernel's thread that handles packets of a CPU where the interrupted task does not: part of a server's cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softirq(Option<u32>);

impl Softirq {
    pub(crate) fn of(cpu: usize) -> Self {
        let wanted = format!("ksoftirqd/{cpu}\n");
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self(pids.find(|pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == wanted)))
    }

    pub(crate) fn cpu_time(self) -> Duration {
        self.0.map_or(Duration::ZERO, |pid| on_cpu(format!("/proc/{pid}/schedstat").into()))
    }
}

/// The first field of a schedstat file: nanoseconds on a CPU.
fn on_cpu(path: PathBuf) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0))
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:") * 1024
}

/// Threads of a process.
pub(crate) fn threads(pid: u32) -> u64 {
    status(pid, "Threads:")
}

/// Open file descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |open| open.count() as u64)
}

/// A number of the kernel's account of a process; 0 where the process is gone.
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Tasks that wanted a CPU over the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(f64::NAN)
}

/// Seconds that all CPUs together were busy since the machine started.
pub(crate) fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.map_while(|field| field.parse().ok()).take(8).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; in hundredths of a second.
    let [user, nice, system, _, _, irq, softirq, steal] = ticks[..] else { return 0.0 };
    (user + nice + system + irq + softirq + steal) / 100.0
}

/// CPU model, number of CPUs, kernel, distribution.
pub(crate) fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown system");
    let hypervisor = if cpus.contains(" hypervisor") { ", virtual machine" } else { "" };
    format!("{model}, {count} CPUs{hypervisor}, Linux {}, {}", kernel.trim(), system.trim_matches('"'))
}

/// The version Debian's package has, where it is installed.
pub(crate) fn package_version(package: &str) -> Option<String> {
    let output = Command::new("dpkg-query").args(["-W", "-f=${Version}", package]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !version.is_empty()).then_some(version)
}
