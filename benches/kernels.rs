//! Every kernel on the shapes of the reference workload under Criterion, on one thread.
//!
//! The cases are those of `cllm bench`, which prints them as one table. Elements a second are
//! floating-point operations. Behind each case stands what its fastest sample is of this machine's
//! limit, measured right after it: the peak of multiply-adds, or of products of bf16, of the best
//! instruction set, or copying in cache or in memory. `CLLM_ISA` forces an instruction set,
//! `CLLM_DTYPE=bf16` has products of bf16. Groups with `denormal` in their name feed denormal
//! numbers: they must not be many times slower.

use cllm::bench::cases::{Case, DENORMAL, Work, visit};
use cllm::bench::machine::{CACHED, FAR, copy_rate, fma_peak};
use cllm_core::{Dtype, Isa, Kernels};
use core::time::Duration;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use std::time::Instant;

/// How long a limit is measured.
const LIMIT_TIME: Duration = Duration::from_millis(20);

fn kernels() -> &'static Kernels {
    let kernels = match std::env::var("CLLM_ISA") {
        Ok(name) => {
            let isa: Isa =
                name.parse().expect("CLLM_ISA: scalar, neon, simd128, avx, avx2, avx512 or amx");
            Kernels::for_isa(isa).expect("CLLM_ISA: this CPU does not have it")
        }
        Err(_) => Kernels::detect(),
    };
    match std::env::var("CLLM_DTYPE") {
        Ok(name) => kernels.with_dtype(name.parse::<Dtype>().expect("CLLM_DTYPE: f32 or bf16")),
        Err(_) => kernels,
    }
}

/// Runs a case, and prints what it has of the limit if it `measures`.
fn run(group: &mut BenchmarkGroup<'_, WallTime>, mut case: Case, measures: bool) {
    group.throughput(match case.work {
        Work::Flops(n, _) => Throughput::Elements(n),
        Work::Cache(n) | Work::Memory(n) => Throughput::Bytes(n),
    });
    let mut fastest = f64::INFINITY;
    group.bench_function(case.name.as_str(), |b| {
        b.iter_custom(|calls| {
            let start = Instant::now();
            (0..calls).for_each(|_| (case.run)());
            let time = start.elapsed();
            fastest = fastest.min(time.as_secs_f64() / calls as f64);
            time
        });
    });
    // A case that is not asked for has not run.
    if measures && fastest.is_finite() {
        let (limit, of, unit) = match case.work {
            Work::Flops(_, dtype) => {
                let peak = fma_peak(Kernels::detect().with_dtype(dtype), LIMIT_TIME);
                (peak, "the peak", "GFLOP/s")
            }
            Work::Cache(_) => (copy_rate(CACHED, LIMIT_TIME), "copying in cache", "GB/s"),
            Work::Memory(_) => (copy_rate(FAR, LIMIT_TIME), "copying in memory", "GB/s"),
        };
        let rate = case.work.amount() as f64 / fastest;
        let percent = 100.0 * rate / limit;
        println!(
            "{:<24}{:.1} {unit} at best: {percent:.1} % of {of}, {:.1} {unit}\n",
            "",
            rate / 1e9,
            limit / 1e9
        );
    }
}

fn main() {
    let kernels = kernels();
    // Cargo passes --bench to measure; a test run only wants each to run once.
    let measures = std::env::args().any(|arg| arg == "--bench");
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .configure_from_args();
    for (name, range) in [("kernels", 1.0), ("denormal", DENORMAL)] {
        let mut group = criterion.benchmark_group(format!("{name}/{}", kernels.set()));
        visit(kernels, range, &mut |case| run(&mut group, case, measures));
        group.finish();
    }
    criterion.final_summary();
}
