//! Instruction sets: their names, and which of them this CPU runs.

#[cfg(target_arch = "x86_64")]
use crate::amx;
use core::fmt;
use core::str::FromStr;

/// An instruction set that kernels exist for, of each kind of CPU the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: the oracle, on every target.
    Scalar,
    /// 64-bit ARM's NEON, with fused multiply-add.
    Neon,
    /// WebAssembly's fixed-width SIMD of 128 bits, without fused multiply-add.
    Simd128,
    /// x86-64 AVX without fused multiply-add.
    Avx,
    /// x86-64 AVX2 with FMA.
    Avx2,
    /// x86-64 AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 AMX: products of bf16 in tiles; all else is that of [`Isa::Avx512`].
    Amx,
}

impl Isa {
    /// All of them, of each kind of CPU the weakest first.
    pub const ALL: [Self; 7] =
        [Self::Scalar, Self::Neon, Self::Simd128, Self::Avx, Self::Avx2, Self::Avx512, Self::Amx];

    /// The name that `--isa` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Simd128 => "simd128",
            Self::Avx => "avx",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Whether this is compiled for CPUs of the kind that has it. Elsewhere it is never supported.
    #[must_use]
    pub const fn is_compiled(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => cfg!(all(
                target_arch = "aarch64",
                target_feature = "neon",
                target_endian = "little"
            )),
            Self::Simd128 => cfg!(all(target_arch = "wasm32", target_feature = "simd128")),
            Self::Avx | Self::Avx2 | Self::Avx512 | Self::Amx => cfg!(target_arch = "x86_64"),
        }
    }

    /// Whether this CPU and its system run it. Of those of x86-64 false on `target_os = "none"`,
    /// where nobody can be asked: use `Kernels::assume_*` there. [`Isa::Neon`] and [`Isa::Simd128`] are a
    /// matter of the target, whose code uses those registers wherever it likes.
    ///
    /// Of [`Isa::Amx`], Linux has to be asked by each program: this does so, by a system call
    /// on CPUs that have it, and so makes the stack frames of signals 8 KiB larger in threads
    /// that multiply.
    #[must_use]
    pub fn is_supported(self) -> bool {
        match self {
            // Of the latter two every machine has it that runs what is compiled for such targets.
            Self::Scalar | Self::Neon | Self::Simd128 => self.is_compiled(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx => detect::avx(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => detect::avx() && detect::avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => detect::avx() && detect::avx2() && detect::avx512(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.has_bf16() && amx::is_granted(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Whether there are instructions for products of bf16 that go with this set, and this
    /// CPU has them: AVX-512 BF16, or AMX. Asks the CPU each time, which in a virtual machine takes
    /// microseconds.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => self.is_supported() && detect::avx512bf16(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => self.is_supported(),
            _ => false,
        }
    }

    /// Whether this CPU, which runs this set, multiplies floats that are used once faster if they are packed: see
    /// [`Kernels::with_packing`](crate::Kernels::with_packing). Asks the CPU each time, if it matters to the set.
    pub(crate) fn had_rather_pack(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if !crate::built::COMPACT && matches!(self, Self::Avx | Self::Avx2 | Self::Avx512) {
            return detect::is_intel();
        }
        false
    }

    /// The strongest one that this CPU runs.
    #[must_use]
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_supported()).unwrap_or(Self::Scalar)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of an instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownIsa;

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an instruction set: use scalar, neon, simd128, avx, avx2, avx512 or amx")
    }
}

impl core::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(text: &str) -> Result<Self, UnknownIsa> {
        Self::ALL.into_iter().find(|isa| isa.name() == text).ok_or(UnknownIsa)
    }
}

/// CPUID through `cpufeatures`, which works without std and also asks XCR0 whether
/// the system saves the wide registers.
#[cfg(target_arch = "x86_64")]
mod detect {
    cpufeatures::new!(has_avx, "avx");
    cpufeatures::new!(has_avx2, "avx2", "fma");
    cpufeatures::new!(has_avx512, "avx512f", "avx512bw", "avx512dq", "avx512vl");

    pub(super) fn avx() -> bool {
        has_avx::get()
    }

    pub(super) fn avx2() -> bool {
        has_avx2::get()
    }

    pub(super) fn avx512() -> bool {
        has_avx512::get()
    }

    /// The maker's name of CPUID leaf 0: `GenuineIntel`.
    pub(super) fn is_intel() -> bool {
        let leaf = core::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        name.as_flattened() == b"GenuineIntel"
    }

    /// Bit 5 of EAX of CPUID leaf 7.1, which `cpufeatures` does not know.
    pub(super) fn avx512bf16() -> bool {
        use core::arch::x86_64::__cpuid_count;
        __cpuid_count(7, 0).eax >= 1 && __cpuid_count(7, 1).eax & 1 << 5 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        assert!("sse9".parse::<Isa>().is_err());
    }

    #[test]
    fn sets_of_other_kinds_of_cpu_are_not_supported() {
        for isa in Isa::ALL {
            assert!(isa.is_compiled() || !isa.is_supported(), "{isa}");
        }
        let kinds = [Isa::Neon, Isa::Simd128, Isa::Avx];
        assert!(kinds.into_iter().filter(|isa| isa.is_compiled()).count() <= 1);
        // 64-bit ARM has no other one, and no program for Linux lacks it there.
        assert_eq!(
            Isa::best() == Isa::Neon,
            cfg!(all(target_arch = "aarch64", target_os = "linux"))
        );
        // And WebAssembly, if it is compiled with SIMD, cannot be run without.
        assert_eq!(
            Isa::best() == Isa::Simd128,
            cfg!(all(target_family = "wasm", target_feature = "simd128"))
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn detection_agrees_with_std() {
        extern crate std;
        let avx = std::is_x86_feature_detected!("avx");
        let fma = std::is_x86_feature_detected!("fma");
        assert_eq!(Isa::Avx.is_supported(), avx);
        let avx2 = std::is_x86_feature_detected!("avx2") && fma;
        assert_eq!(Isa::Avx2.is_supported(), avx2);
        let avx512 = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl");
        assert_eq!(Isa::Avx512.is_supported(), avx2 && avx512);
        let bf16 = std::is_x86_feature_detected!("avx512bf16");
        assert_eq!(Isa::Avx512.has_bf16(), avx2 && avx512 && bf16);
        assert!(!Isa::Avx2.has_bf16());
        assert!(!Isa::Amx.is_supported() || Isa::Avx512.has_bf16());
        assert!(Isa::best().is_supported());
    }
}
