//! Every kernel on the shapes of the reference workload under Criterion, on one thread.
//!
//! The cases are those of `cllm bench`, which prints the same as one table. Elements a
//! second are floating-point operations; before each product the peak of
//! multiply-adds is measured, and its time at that peak is printed beside Criterion's.
//! `CLLM_ISA` forces an instruction set. Groups with `denormal` in their name feed
//! denormal numbers: they must not be many times slower.

use cllm::bench::cases::{DENORMAL, Work, visit};
use cllm::bench::machine::fma_peak;
use cllm_core::{Isa, Kernels};
use core::time::Duration;
use criterion::{Criterion, Throughput};

fn kernels() -> &'static Kernels {
    match std::env::var("CLLM_ISA") {
        Ok(name) => {
            let isa: Isa =
                name.parse().expect("CLLM_ISA: scalar, neon, simd128, avx, avx2, avx512 or amx");
            Kernels::for_isa(isa).expect("CLLM_ISA: this CPU does not have it")
        }
        Err(_) => Kernels::detect(),
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
        let mut group = criterion.benchmark_group(format!("{name}/{}", kernels.isa()));
        visit(kernels, range, &mut |mut case| {
            group.throughput(match case.work {
                Work::Flops(n, _) => Throughput::Elements(n),
                Work::Cache(n) | Work::Memory(n) => Throughput::Bytes(n),
            });
            if let (Work::Flops(n, _), true) = (case.work, measures) {
                let peak = fma_peak(Kernels::detect(), Duration::from_millis(20));
                println!(
                    "at the peak of {:.1} GFLOP/s: {:.2} us",
                    peak / 1e9,
                    n as f64 / peak * 1e6
                );
            }
            group.bench_function(case.name.as_str(), |b| b.iter(|| (case.run)()));
        });
        group.finish();
    }
    criterion.final_summary();
}
