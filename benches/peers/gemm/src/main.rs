//! Times matrix products of Crystalline's kernels and of other libraries in turns.
//!
//! `benches/peers/gemm.sh` builds and calls it; README.md says what the columns are.

mod aligned;
mod ours;
mod peers;
mod place;
mod problem;
mod report;
mod shapes;
mod timing;
mod torch;

use aligned::{Aligned, Role};
use clap::Parser;
use cllm_kernels::{Dtype, Isa, Kernels};
use core::time::Duration;
use ours::{Ours, Packing};
use peers::OpenBlas;
use place::Places;
use problem::Problem;
use report::{Entry, Line, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use timing::{Calls, Sampler};
use torch::Torch;

/// Times matrix products of Crystalline's kernels and of other libraries in turns.
#[derive(Parser)]
struct Options {
    /// Instruction set: scalar, avx, avx2, avx512 or amx. The peers use AVX2 or AVX-512 as this
    /// program was built, or what their variables say: gemm.sh sees to both.
    #[arg(long)]
    isa: Isa,
    /// Threads of every library, 1 or 2.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    threads: u8,
    /// Samples of each library for each product.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Only these groups of products.
    #[arg(long, value_delimiter = ',', value_parser = shapes::GROUPS, default_values = shapes::GROUPS)]
    groups: Vec<String>,
    /// libopenblas.so, or that of the Python package scipy-openblas32.
    #[arg(long)]
    openblas: Option<PathBuf>,
    /// A Python that has PyTorch.
    #[arg(long)]
    python: Option<PathBuf>,
}

/// Threads of OpenBLAS and of OpenMP look for work for some 20 ms before they sleep, and would
/// be in the next library's way.
const REST: Duration = Duration::from_millis(50);

/// Who is timed for a product.
struct Contender<'a> {
    name: &'static str,
    sampler: Box<dyn Sampler + 'a>,
    calls: Calls,
    rates: Vec<f64>,
    /// Leaves threads behind that look for work.
    spins: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("peers-gemm: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let threads = usize::from(options.threads);
    let isa = options.isa;
    let wide = isa >= Isa::Avx512;
    if cfg!(feature = "avx512") != wide {
        return Err(format!("--isa {isa}: built for others; use benches/peers/gemm.sh"));
    }
    // The crates take AVX2 where the CPU has it, whatever they are told.
    let crates = isa >= Isa::Avx2;
    // With AMX only products of bf16 are others than with AVX-512.
    let floats = isa != Isa::Amx;
    let variable = "MATMUL_NUM_THREADS";
    if std::env::var(variable).ok().and_then(|value| value.parse().ok()) != Some(threads) {
        return Err(format!("--threads {threads}: set {variable}={threads} too, as gemm.sh does"));
    }
    let single = Kernels::for_isa(isa).ok_or(format!("--isa {isa}: this CPU lacks it"))?;
    let half = single.with_dtype(Dtype::Bf16);
    let half = (wide && half.is_native()).then_some(half);
    let places = if threads == 2 { Some(Places::two()?) } else { None };
    peers::start_threads(threads)?;
    let blas = options.openblas.as_ref().filter(|_| floats);
    let blas = blas.map(|path| OpenBlas::load(path, threads)).transpose()?;
    let torch = options.python.as_ref().map(|path| Torch::start(path, threads)).transpose()?;
    let rest = Rest { places, python: torch.as_ref().map(Torch::process) };

    println!("{isa}, threads: {threads}, medians of {} samples in turns, GFLOP/s", options.runs);
    if let Some(blas) = &blas {
        println!("openblas: {}", blas.description);
    }
    if let Some(torch) = &torch {
        println!("torch: {}", torch.description);
    }
    let mut report = Report::new(threads);
    for product in options.groups.iter().flat_map(|group| shapes::products(group)) {
        let problem = Problem::new(product);
        let mut entries = Vec::new();
        if floats {
            let ours = |packing| Box::new(Ours::new(single, &problem, packing, places));
            let mut list = vec![
                contender("cllm", ours(Packing::Before)),
                contender("cllm+pack", ours(Packing::Within)),
            ];
            if crates {
                list.push(contender("gemm", peers::gemm(&problem, threads)));
                list.push(contender("matrixm.", peers::matrixmultiply(&problem)));
            }
            if let Some(blas) = &blas {
                list.push(contender("openblas", blas.product(&problem)));
            }
            if let Some(torch) = &torch {
                list.push(contender("torch", torch.product(&problem, "f32")?));
            }
            entries.push(measure("f32", single, list, &problem, options, rest)?);
        }
        if let Some(half) = half {
            let ours = |packing| Box::new(Ours::new(half, &problem, packing, places));
            let mut list = vec![
                contender("cllm", ours(Packing::Before)),
                contender("cllm+pack", ours(Packing::Within)),
            ];
            if let Some(torch) = &torch {
                list.push(contender("torch", torch.product(&problem, "bf16")?));
            }
            entries.push(measure("bf16", half, list, &problem, options, rest)?);
        }
        report.add(Line { product: problem.product.clone(), entries });
    }
    report.finish();
    Ok(())
}

fn contender<'a>(name: &'static str, sampler: Box<dyn Sampler + 'a>) -> Contender<'a> {
    let spins = ["openblas", "torch"].contains(&name);
    Contender { name, sampler, calls: Calls { warm: 0, timed: 1 }, rates: Vec::new(), spins }
}

/// Checks every contender's result, then times them in turns, the peak among them.
fn measure(
    dtype: &'static str,
    kernels: &'static Kernels,
    mut list: Vec<Contender<'_>>,
    problem: &Problem,
    options: &Options,
    rest: Rest,
) -> Result<Entry, String> {
    let mut c = Aligned::zeros(Role::C, problem.expected.len());
    place::put_all(rest.places, rest.python)?;
    for contender in &mut list {
        c.fill(f32::NAN);
        contender.sampler.sample(&mut c, contender.calls)?;
        // PyTorch's result is in the other process, where it was checked.
        if contender.name != "torch"
            && let Some(error) = problem.error(&c, contender.sampler.rounds())
        {
            return Err(format!("{}, {dtype}, {:?}: {error}", contender.name, problem.product));
        }
        // Its threads have been started by now.
        rest.after(contender)?;
        let mut seconds = f64::INFINITY;
        for timed in [1, 10] {
            let calls = Calls { warm: 1, timed };
            let time = contender.sampler.sample(&mut c, calls)?.as_secs_f64();
            seconds = seconds.min(time / f64::from(timed));
            if time > timing::SAMPLE.as_secs_f64() {
                break;
            }
        }
        contender.calls = Calls::of(seconds);
        rest.after(contender)?;
    }
    let flops = problem.product.flops() as f64;
    let (mut peaks, count) = (Vec::new(), list.len());
    for run in 0..usize::from(options.runs) {
        peaks.push(ours::peak(kernels, rest.places));
        for turn in 0..count {
            let contender = &mut list[(run + turn) % count];
            let time = contender.sampler.sample(&mut c, contender.calls)?;
            contender.rates.push(flops * f64::from(contender.calls.timed) / time.as_secs_f64());
            rest.after(contender)?;
        }
    }
    let rates = list.into_iter().map(|one| (one.name, median(one.rates))).collect();
    Ok(Entry { dtype, peak: median(peaks), rates })
}

/// What is between the samples of two libraries.
#[derive(Clone, Copy)]
struct Rest {
    /// Where the threads of each are, if it has two.
    places: Option<Places>,
    /// PyTorch's process.
    python: Option<u32>,
}

impl Rest {
    /// Waits until threads that look for work are asleep, and puts new ones where they belong.
    fn after(self, contender: &Contender<'_>) -> Result<(), String> {
        if contender.spins && self.places.is_some() {
            std::thread::sleep(REST);
        }
        place::put_all(self.places, self.python)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}
