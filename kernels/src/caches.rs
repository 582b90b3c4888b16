//! Sizes of the CPU's caches, as CPUID reports them.
//!
//! Kernels do not ask: they have blocks of fixed sizes, which bits depend on. Whoever cuts work
//! into calls may want to know how much of it stays in a cache.
//!
//! Intel describes its caches in leaf 4 (SDM, volume 2A, "CPUID", table 3-8), AMD in leaf
//! 0x8000001D (APM, volume 3, E.4.15), both one cache a subleaf and in the same fields.

/// Bytes of the data caches that a core has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Level 1, data.
    pub l1d: usize,
    /// Level 2: where cores share one, the share of each.
    pub l2: usize,
    /// Level 3, all of it, whoever shares it; 0 if there is none or nobody knows. In a virtual
    /// machine it is often that of the host, whose other guests use it too.
    pub l3: usize,
}

impl Caches {
    /// What is usual at least: 32 KiB, 512 KiB, and no third level.
    pub const FALLBACK: Self = Self { l1d: 32 * 1024, l2: 512 * 1024, l3: 0 };

    /// Those of the CPU that runs this; of levels that it says nothing about, and of CPUs other
    /// than x86-64, those of [`Caches::FALLBACK`].
    ///
    /// Asks the CPU each time, which in a virtual machine takes microseconds. Where CPUs differ
    /// the thread's own answers.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self::or_fallback(cpuid::levels());
        #[cfg(not(target_arch = "x86_64"))]
        Self::FALLBACK
    }

    /// From the bytes of each level, 0 where unknown.
    #[cfg(target_arch = "x86_64")]
    fn or_fallback([l1d, l2, l3]: [usize; 3]) -> Self {
        let or = |bytes, fallback| if bytes == 0 { fallback } else { bytes };
        Self { l1d: or(l1d, Self::FALLBACK.l1d), l2: or(l2, Self::FALLBACK.l2), l3 }
    }
}

#[cfg(target_arch = "x86_64")]
mod cpuid {
    use core::arch::x86_64::{__cpuid, __cpuid_count};

    /// EAX, EBX and ECX of a subleaf.
    pub(super) type Registers = [u32; 3];

    const INTEL: u32 = 4;
    const AMD: u32 = 0x8000_001d;
    /// More than any CPU has: a hypervisor might answer without end.
    const SUBLEAVES: u32 = 16;

    /// Bytes of each level, 0 where unknown.
    pub(super) fn levels() -> [usize; 3] {
        let describes = |leaf: u32| {
            let subleaf = |number| {
                let answer = __cpuid_count(leaf, number);
                [answer.eax, answer.ebx, answer.ecx]
            };
            of_subleaves(&mut (0..SUBLEAVES).map(subleaf))
        };
        let intel = if __cpuid(0).eax >= INTEL { describes(INTEL) } else { [0; 3] };
        if intel != [0; 3] {
            return intel;
        }
        // Leaf 0x8000001D is there if bit 22 of ECX of 0x80000001 is set: topology extensions.
        let has_amd = __cpuid(0x8000_0000).eax >= AMD && __cpuid(0x8000_0001).ecx & 1 << 22 != 0;
        if has_amd { describes(AMD) } else { [0; 3] }
    }

    /// Bytes of each level from the subleaves, up to the one that describes no cache.
    pub(super) fn of_subleaves(subleaves: &mut dyn Iterator<Item = Registers>) -> [usize; 3] {
        const DATA: u32 = 1;
        const UNIFIED: u32 = 3;
        let mut bytes = [0; 3];
        // Threads that may share a cache; those of the first level are the threads of a core.
        let mut threads = [1; 3];
        for [eax, ebx, ecx] in subleaves {
            let (kind, level) = (eax & 0x1f, (eax >> 5 & 7) as usize);
            if kind == 0 {
                break;
            }
            if matches!(kind, DATA | UNIFIED) && (1..=3).contains(&level) {
                let field = |from: u32, bits: u32| (ebx >> from & ((1 << bits) - 1)) as usize + 1;
                let (line, partitions, ways) = (field(0, 12), field(12, 10), field(22, 10));
                let size = (line * partitions * ways).saturating_mul(ecx as usize + 1);
                bytes[level - 1] = size;
                threads[level - 1] = (eax >> 14 & 0xfff) as usize + 1;
            }
        }
        bytes[1] /= (threads[1] / threads[0]).max(1);
        bytes
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// A subleaf of so many `sets` and `ways` of lines of 64 bytes, shared by `threads`.
    fn subleaf(kind: u32, level: u32, threads: u32, sets: u32, ways: u32) -> cpuid::Registers {
        [kind | level << 5 | (threads - 1) << 14, 63 | (ways - 1) << 22, sets - 1]
    }

    fn of(subleaves: &[cpuid::Registers]) -> Caches {
        // What follows the end is of no meaning.
        let after = [[0; 3], subleaf(1, 1, 1, 9, 9)];
        let mut all = subleaves.iter().chain(&after).copied();
        Caches::or_fallback(cpuid::of_subleaves(&mut all))
    }

    #[test]
    fn sizes_are_lines_times_ways_times_sets() {
        // A Zen 3 server core with two threads, and its 32 MiB of level 3.
        let zen3 = [
            subleaf(1, 1, 2, 64, 8),
            subleaf(2, 1, 2, 64, 8),
            subleaf(3, 2, 2, 1024, 8),
            subleaf(3, 3, 16, 32768, 16),
        ];
        assert_eq!(of(&zen3), Caches { l1d: 32 << 10, l2: 512 << 10, l3: 32 << 20 });
        // Small cores, four to a level 2 of 4 MiB.
        let cluster = [subleaf(1, 1, 1, 64, 8), subleaf(3, 2, 4, 4096, 16)];
        assert_eq!(of(&cluster), Caches { l1d: 32 << 10, l2: 1 << 20, l3: 0 });
    }

    #[test]
    fn what_is_not_said_is_the_fallback() {
        assert_eq!(of(&[]), Caches::FALLBACK);
        let first = of(&[subleaf(1, 1, 1, 64, 12)]);
        assert_eq!(first, Caches { l1d: 48 << 10, ..Caches::FALLBACK });
        // Caches of instructions alone, and levels beyond the third, are none of ours.
        assert_eq!(of(&[subleaf(2, 1, 1, 64, 8), subleaf(3, 4, 1, 4096, 16)]), Caches::FALLBACK);
    }

    #[test]
    fn this_cpu_has_caches_of_some_size() {
        let caches = Caches::detect();
        assert!((8 << 10..=1 << 20).contains(&caches.l1d), "{caches:?}");
        assert!((64 << 10..=1 << 28).contains(&caches.l2), "{caches:?}");
    }
}
