//! What passes work between threads, and what the engine costs, under Criterion.
//!
//! The cases are those of `cllm bench engine`, which prints the same as one table with the
//! targets. They time themselves: what lies between two measurements does not count.

use cllm::bench::engine::visit;
use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("engine");
    visit(&mut |case| {
        group.bench_function(case.name, |b| b.iter_custom(|times| (case.run)(times)));
    })
    .expect("the reference workload has a plan");
    group.finish();
    criterion.final_summary();
}
