//! How much memory there is to give: the system's and that of the control group.
//!
//! A container's limit does not show in the system's figures, so both are asked and the
//! smaller counts. What a group uses includes the page cache, which the system takes back
//! under pressure: it counts as available.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory that this process may use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// All of it: the machine's, or the control group's limit if that is less.
    pub total: u64,
    /// What can be had now without swapping.
    pub available: u64,
}

/// Asks the system; `None` where it does not tell.
#[must_use]
pub fn machine() -> Option<MachineMemory> {
    under(Path::new("/"))
}

/// Largest resident size of this process so far, in bytes; `None` where the system does
/// not tell.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// As [`machine`], with the system's files under `root`.
fn under(root: &Path) -> Option<MachineMemory> {
    let info = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let mut memory = MachineMemory {
        total: field(&info, "MemTotal:")?,
        available: field(&info, "MemAvailable:")?,
    };
    for (limit, used) in group_limits(root) {
        memory.total = memory.total.min(limit);
        memory.available = memory.available.min(limit.saturating_sub(used));
    }
    Some(memory)
}

/// `name   123 kB` as bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Limit and use of the process's memory control group and of all above it.
fn group_limits(root: &Path) -> Vec<(u64, u64)> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let files = if controllers.is_empty() {
            Files::V2
        } else if controllers.split(',').any(|c| c == "memory") {
            Files::V1
        } else {
            continue;
        };
        let base = root.join(files.base());
        // Inside a container the path may be the host's, which is not there: then only
        // the root of the hierarchy, which is the container's own, counts.
        let group = base.join(path.trim_start_matches('/'));
        let mut at: Option<&Path> = Some(&group);
        while let Some(dir) = at.filter(|dir| dir.starts_with(&base)) {
            limits.extend(files.read(dir));
            at = dir.parent();
        }
    }
    limits
}

#[derive(Clone, Copy)]
enum Files {
    V1,
    V2,
}

impl Files {
    fn base(self) -> PathBuf {
        PathBuf::from(match self {
            Self::V1 => "sys/fs/cgroup/memory",
            Self::V2 => "sys/fs/cgroup",
        })
    }

    /// Limit and use of one group; `None` without a limit.
    fn read(self, dir: &Path) -> Option<(u64, u64)> {
        let (limit, used, cache) = match self {
            Self::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            Self::V2 => ("memory.max", "memory.current", "inactive_file"),
        };
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
        };
        // "max" is no number: no limit.
        let (limit, used) = (number(limit)?, number(used)?);
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok());
        Some((limit, used.saturating_sub(cache.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:     800 kB\n";

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn kib(total: u64, available: u64) -> Option<MachineMemory> {
        Some(MachineMemory { total: total * 1024, available: available * 1024 })
    }

    #[test]
    fn without_a_group_the_system_counts() {
        let root = tree(&[("proc/meminfo", MEMINFO)]);
        assert_eq!(under(root.path()), kib(1000, 800));
        assert_eq!(under(&root.path().join("nowhere")), None);
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts_and_cache_is_available() {
        let root = tree(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "614400\n"),
            ("sys/fs/cgroup/a/memory.current", "307200\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 102400\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "1\n"),
        ]);
        // 600 KiB of which 300 are used, 100 of them cache.
        assert_eq!(under(root.path()), kib(600, 400));
    }

    #[test]
    fn old_groups_and_absent_paths_are_understood() {
        let root = tree(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "9:cpu:/x\n4:memory,pids:/host/only\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "512000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "102400\n"),
        ]);
        assert_eq!(under(root.path()), kib(500, 400));
        // The unlimited value of old groups is a huge number.
        let limit = root.path().join("sys/fs/cgroup/memory/memory.limit_in_bytes");
        fs::write(limit, "9223372036854771712\n").unwrap();
        assert_eq!(under(root.path()), kib(1000, 800));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells() {
        let memory = machine().unwrap();
        assert!(memory.available > 1 << 20 && memory.available <= memory.total);
        let before = peak_rss_bytes().unwrap();
        let touched = vec![1_u8; 32 << 20];
        assert!(peak_rss_bytes().unwrap() >= before.max(touched.len() as u64));
    }
}
