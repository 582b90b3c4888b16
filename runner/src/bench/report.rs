//! The kernels' rates beside what the machine can do at most.

use super::cases::{Case, Work, visit};
use super::machine::{CACHED, FAR, copy_rate, fma_peak};
use super::timing::fastest;
use cllm_core::{Dtype, Isa, KernelSet, Kernels};
use core::fmt::Write as _;
use core::time::Duration;
use serde::Serialize;

/// What this machine can do at most, on one thread.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// The strongest instruction set.
    #[serde(serialize_with = "name")]
    pub isa: Isa,
    /// What the operands of products are rounded to.
    #[serde(serialize_with = "dtype_name")]
    pub dtype: Dtype,
    /// Its products of that type in registers, in GFLOP/s: shares of weaker instruction sets are
    /// shares of this too, and so say what is lost by using them.
    pub peak_gflops: f64,
    /// The same of `f32`, beside it.
    pub f32_peak_gflops: f64,
    /// Copying within a core's own cache, GB/s read and written.
    pub cache_copy_gb_per_s: f64,
    /// Copying in memory, GB/s read and written.
    pub memory_copy_gb_per_s: f64,
}

/// What a kernel reached.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// The instruction set.
    #[serde(serialize_with = "name")]
    pub isa: Isa,
    /// Whether the CPU multiplies the type of the operands by instructions of its own.
    pub native: bool,
    /// The kernel and what it did.
    pub kernel: String,
    /// What the operands of its products are rounded to.
    #[serde(serialize_with = "optional_dtype_name", skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Seconds of one call.
    pub seconds: f64,
    /// GFLOP/s, of products.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// Share of the peak of that type, of products.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_peak: Option<f64>,
    /// Share of what this instruction set has as its peak, of products: where it is not the
    /// strongest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_own_peak: Option<f64>,
    /// GB/s, of passes over memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_per_s: Option<f64>,
    /// Share of what copying reaches in the same place, of passes over memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_copy: Option<f64>,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Limits,
    /// The kernels.
    pub kernels: Vec<Rate>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn name<S: serde::Serializer>(isa: &Isa, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(isa.name())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn dtype_name<S: serde::Serializer>(dtype: &Dtype, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(dtype.name())
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn optional_dtype_name<S: serde::Serializer>(
    dtype: &Option<Dtype>,
    s: S,
) -> Result<S::Ok, S::Error> {
    dtype.map(Dtype::name).serialize(s)
}

impl Limits {
    /// The peak of products whose operands are rounded to `dtype`.
    fn peak(&self, dtype: Dtype) -> f64 {
        if dtype == self.dtype { self.peak_gflops } else { self.f32_peak_gflops }
    }
}

impl Report {
    /// Measures the kernels of `isas` whose name contains `only`, each for about `time`, with
    /// operands of products rounded to `dtype`.
    ///
    /// Instruction sets that the CPU lacks are passed over.
    #[must_use]
    pub fn measure(isas: &[Isa], dtype: Dtype, only: &str, time: Duration) -> Self {
        let single = Kernels::detect();
        let best = single.with_dtype(dtype);
        let (mut peak, mut f32_peak) = (fma_peak(best, time), fma_peak(single, time));
        let mut machine = Limits {
            isa: best.set().isa,
            dtype,
            peak_gflops: 0.0,
            f32_peak_gflops: 0.0,
            cache_copy_gb_per_s: copy_rate(CACHED, time) / 1e9,
            memory_copy_gb_per_s: copy_rate(FAR, time) / 1e9,
        };
        let mut measured: Vec<(KernelSet, String, Work, f64)> = Vec::new();
        let mut own_peaks: Vec<(KernelSet, f64)> = Vec::new();
        for kernels in isas.iter().filter_map(|isa| Kernels::for_isa(*isa)) {
            let kernels = kernels.with_dtype(dtype);
            // Instruction sets may differ in products of another type alone.
            if measured.iter().any(|(set, ..)| *set == kernels.set()) {
                continue;
            }
            let is_best = kernels.set() == best.set();
            let mut own: f64 = 0.0;
            visit(kernels, 1.0, &mut |case: Case| {
                if !case.name.contains(only) {
                    return;
                }
                // Clocks change with heat and neighbours: the peak is looked for all along.
                peak = peak.max(fma_peak(best, time / 10));
                f32_peak = f32_peak.max(fma_peak(single, time / 10));
                if !is_best && matches!(case.work, Work::Flops(_, of) if of == dtype) {
                    own = own.max(fma_peak(kernels, time / 10));
                }
                let Case { name, work, mut run } = case;
                measured.push((kernels.set(), name, work, fastest(time, &mut run)));
            });
            if !is_best {
                own_peaks.push((kernels.set(), own / 1e9));
            }
        }
        // Of one type there is one peak.
        f32_peak = if dtype == Dtype::F32 { f32_peak.max(peak) } else { f32_peak };
        machine.f32_peak_gflops = f32_peak / 1e9;
        machine.peak_gflops = if dtype == Dtype::F32 { f32_peak } else { peak } / 1e9;
        let kernels = measured
            .into_iter()
            .map(|(set, kernel, work, seconds)| {
                let rate = Rate::new(set, kernel, work, seconds, &machine);
                match own_peaks.iter().find(|(of, _)| *of == set) {
                    Some((_, peak)) => rate.beside_own_peak(set.dtype, *peak),
                    None => rate,
                }
            })
            .collect();
        Self { machine, kernels }
    }

    /// A table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let Limits {
            isa,
            dtype,
            peak_gflops,
            f32_peak_gflops,
            cache_copy_gb_per_s,
            memory_copy_gb_per_s,
        } = self.machine;
        let floats = match dtype {
            Dtype::F32 => String::new(),
            Dtype::Bf16 => format!(", {f32_peak_gflops:.1} in f32"),
        };
        let mut text = format!(
            "one thread: {peak_gflops:.1} GFLOP/s peak of products ({isa}, {dtype}){floats}, copying \
             {cache_copy_gb_per_s:.1} GB/s in cache, {memory_copy_gb_per_s:.1} GB/s in memory\n"
        );
        let mut last = None;
        for rate in &self.kernels {
            if last != Some(rate.isa) {
                // Writing to a String cannot fail.
                let set = KernelSet { isa: rate.isa, dtype, is_native: rate.native };
                let _ = writeln!(text, "\n{set}");
                last = Some(rate.isa);
            }
            let (value, unit) = match (rate.gflops, rate.gb_per_s) {
                (Some(gflops), _) => (gflops, "GFLOP/s"),
                (None, bytes) => (bytes.unwrap_or(0.0), "GB/s"),
            };
            let (share, of) = match (rate.share_of_peak, rate.share_of_copy) {
                (Some(share), _) if rate.dtype == Some(dtype) => (share, "peak"),
                (Some(share), _) => (share, "the f32 peak"),
                (None, share) => (share.unwrap_or(0.0), "copy"),
            };
            let percent = 100.0 * share;
            let _ =
                write!(text, "  {:<38}{value:>8.1} {unit:<8}{percent:>6.1} % of {of}", rate.kernel);
            if let Some(own) = rate.share_of_own_peak {
                let _ = write!(text, ",{:>6.1} % of its own", 100.0 * own);
            }
            text.push('\n');
        }
        text
    }
}

impl Rate {
    fn new(set: KernelSet, kernel: String, work: Work, seconds: f64, machine: &Limits) -> Self {
        let giga = work.amount() as f64 / seconds / 1e9;
        let mut rate = Self {
            isa: set.isa,
            native: set.is_native,
            kernel,
            dtype: None,
            seconds,
            gflops: None,
            share_of_peak: None,
            share_of_own_peak: None,
            gb_per_s: None,
            share_of_copy: None,
        };
        match work {
            Work::Flops(_, dtype) => {
                rate.dtype = Some(dtype);
                rate.gflops = Some(giga);
                rate.share_of_peak = Some(giga / machine.peak(dtype));
            }
            Work::Cache(_) => {
                rate.gb_per_s = Some(giga);
                rate.share_of_copy = Some(giga / machine.cache_copy_gb_per_s);
            }
            Work::Memory(_) => {
                rate.gb_per_s = Some(giga);
                rate.share_of_copy = Some(giga / machine.memory_copy_gb_per_s);
            }
        }
        rate
    }

    /// Of a set with products of `dtype` whose peak is `peak` GFLOP/s.
    fn beside_own_peak(mut self, dtype: Dtype, peak: f64) -> Self {
        if self.dtype == Some(dtype) {
            self.share_of_own_peak = self.gflops.map(|gflops| gflops / peak);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Limits = Limits {
        isa: Isa::Avx2,
        dtype: Dtype::Bf16,
        peak_gflops: 200.0,
        f32_peak_gflops: 100.0,
        cache_copy_gb_per_s: 80.0,
        memory_copy_gb_per_s: 20.0,
    };

    #[test]
    fn shares_are_of_the_limit_that_applies() {
        let rate = |work| Rate::new(Kernels::scalar().set(), "k".to_owned(), work, 0.5, &MACHINE);
        let product = rate(Work::Flops(25_000_000_000, Dtype::F32));
        assert_eq!((product.gflops, product.share_of_peak), (Some(50.0), Some(0.5)));
        let pairs = rate(Work::Flops(25_000_000_000, Dtype::Bf16));
        assert_eq!((pairs.gflops, pairs.share_of_peak), (Some(50.0), Some(0.25)));
        assert_eq!((product.gb_per_s, product.share_of_copy), (None, None));
        let cached = rate(Work::Cache(10_000_000_000));
        assert_eq!((cached.gb_per_s, cached.share_of_copy), (Some(20.0), Some(0.25)));
        let far = rate(Work::Memory(5_000_000_000));
        assert_eq!((far.gb_per_s, far.share_of_copy), (Some(10.0), Some(0.5)));
    }

    #[test]
    fn what_stays_f32_beside_bf16_says_so() {
        let rate = |name: &str, dtype| {
            let work = Work::Flops(25_000_000_000, dtype);
            Rate::new(Kernels::scalar().set(), name.to_owned(), work, 0.5, &MACHINE)
        };
        let kernels = vec![rate("gemm", Dtype::Bf16), rate("attention", Dtype::F32)];
        let report = Report { machine: MACHINE, kernels };
        let text = report.text();
        let line = |name| text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line("gemm").ends_with("  25.0 % of peak"), "{text}");
        assert!(line("attention").ends_with("  50.0 % of the f32 peak"), "{text}");
        assert!(
            text.contains("200.0 GFLOP/s peak of products (avx2, bf16), 100.0 in f32,"),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["kernels"][0]["dtype"], "bf16");
        assert_eq!(json["kernels"][1]["dtype"], "f32");
    }

    #[test]
    fn products_of_a_weaker_set_have_a_share_of_its_own_peak() {
        let (time, scalar) = (Duration::from_millis(1), Kernels::scalar().set());
        let report = Report::measure(&[Isa::Scalar], Dtype::F32, "small/16", time);
        let [rate] = &report.kernels[..] else { panic!("{report:?}") };
        let is_weaker = report.machine.isa != Isa::Scalar;
        assert_eq!(rate.share_of_own_peak.is_some(), is_weaker);
        assert!(rate.share_of_own_peak.is_none_or(|own| rate.share_of_peak.unwrap() < own));
        assert_eq!(report.text().contains(" % of its own\n"), is_weaker, "{}", report.text());
        // That of products of bf16 is not that of what stays f32.
        for (dtype, own) in [(Dtype::Bf16, Some(0.5)), (Dtype::F32, None)] {
            let rate =
                Rate::new(scalar, "k".to_owned(), Work::Flops(1 << 30, dtype), 1.0, &MACHINE);
            let peak = 2.0 * rate.gflops.unwrap();
            assert_eq!(rate.beside_own_peak(Dtype::Bf16, peak).share_of_own_peak, own);
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_kernel_asked_for() {
        let report = Report::measure(&[Isa::Scalar], Dtype::F32, "gelu", Duration::from_millis(1));
        assert!(report.kernels.iter().all(|k| k.kernel.contains("gelu") && k.seconds > 0.0));
        assert_eq!(report.kernels.len(), 2);
        let text = report.text();
        assert_eq!(text.matches("of copy").count(), 2, "{text}");
        assert!(text.contains("\nscalar\n"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["kernels"][0]["isa"], "scalar");
        assert!(json["machine"]["peak_gflops"].as_f64().unwrap() > 0.1);
    }
}
