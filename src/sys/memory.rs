//! How much memory there is, and what becomes of what is not used any more.

use std::{fs, path::Path};

use nix::sys::resource::{Resource, getrlimit};

/// Where control groups are found: of version 2, also beside those of version 1, and the memory of version 1. Each with the
/// files that bound memory.
const GROUPS: [(&str, &str, &[&str]); 3] = [
    ("", "/sys/fs/cgroup", &["memory.max", "memory.high"]),
    ("", "/sys/fs/cgroup/unified", &["memory.max", "memory.high"]),
    ("memory", "/sys/fs/cgroup/memory", &["memory.limit_in_bytes"]),
];

/// Bytes of memory that this process may have: the machine's, or what its control groups and its limits leave it of that.
/// Nothing where the system does not tell.
pub fn there_is() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let limits =
        [Resource::RLIMIT_AS, Resource::RLIMIT_DATA].into_iter().filter_map(|resource| getrlimit(resource).ok());
    let of_machine = read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text));
    let of_groups = read(Path::new("/proc/self/cgroup")).and_then(|text| of_groups(&text, read));
    limits.map(|(soft, _)| soft).filter(|soft| *soft != u64::MAX).chain(of_machine).chain(of_groups).min()
}

/// `MemTotal` of proc_meminfo(5).
fn of_machine(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The least of what the groups of cgroup(7) may have, and those above them.
fn of_groups(text: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        for (controller, root, files) in GROUPS {
            if !controllers.split(',').any(|named| named == controller) {
                continue;
            }
            let folder = Path::new(root).join(group.trim_start_matches('/'));
            let folders = folder.ancestors().take_while(|above| above.starts_with(root));
            let paths = folders.flat_map(|folder| files.iter().map(|file| folder.join(file)));
            // Where there is no bound they say so in a word.
            let bounds = paths.filter_map(|path| read(&path)?.trim().parse::<u64>().ok());
            least = least.into_iter().chain(bounds).min();
        }
    }
    least
}

/// Gives what is free back to the system now. Takes milliseconds; for after something large that is done seldom.
///
/// mimalloc gives back what was freed some while ago when more is freed (its options `purge_delay` and
/// `arena_purge_mult`). After a long list was read nothing of that size is, so what reading took would stay ours.
pub fn give_back() {
    // SAFETY: takes no pointer, and may be called by any thread at any time.
    #[allow(unsafe_code, reason = "no safe face for mi_collect in mimalloc")]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc as _, Layout};

    use mimalloc::MiMalloc;

    use super::*;

    fn resident() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn the_narrowest_group_on_the_way_up_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "2000\n"),
            ("/sys/fs/cgroup/a/memory.high", "1000\n"),
            ("/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n"),
            ("/sys/fs/cgroup/else/memory.max", "1\n"),
        ];
        let read = |path: &Path| {
            let found = files.iter().find(|(file, _)| Path::new(file) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        for (groups, expected) in [
            ("0::/a/b\n", Some(1000)),
            ("4:cpu,memory:/c\n0::/\n", Some(3000)),
            ("4:memory:/gone/below\n0::/a\n", Some(1000)),
            ("3:cpu:/else\n0::/\n", None),
            ("nonsense\n", None),
        ] {
            assert_eq!(of_groups(groups, read), expected, "{groups}");
        }
    }

    #[test]
    fn the_machine_has_some_and_no_process_has_more() {
        let machine = of_machine(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
        assert!(machine > 1 << 20 && there_is().unwrap() <= machine);
        assert_eq!(of_machine("MemTotal:        1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
        assert_eq!(of_machine("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn what_is_free_goes_back_to_the_system_at_once() {
        const SIZE: usize = 256 << 20;
        let layout = Layout::from_size_align(SIZE, 16).unwrap();
        let before = resident();
        // SAFETY: the block is `SIZE` bytes long, and freed once, with the layout it was made with.
        #[allow(unsafe_code, reason = "tests are not built with mimalloc as their allocator")]
        unsafe {
            let block = MiMalloc.alloc(layout);
            assert!(!block.is_null());
            block.write_bytes(1, SIZE);
            MiMalloc.dealloc(block, layout);
        }
        give_back();
        // Other tests take some meanwhile.
        assert!(resident() < before + SIZE / 2, "{before} {}", resident());
    }
}
