//! Plans that are made while a program is compiled are those that are made when it runs, and say their numbers
//! if they do not fit.

#[path = "support/config.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod config;
#[path = "freestanding/src/small.rs"]
#[allow(dead_code, reason = "its memory is for programs")]
mod small;

use cllm_core::generate::GeneratePlan;
use cllm_core::{
    AdapterSite, AdapterSites, Adapters, Architecture, BatchShape, Dtype, Engine, Isa, KernelSet,
    Kernels, Mode, ModelConfig, Op, Packing, Plan, PlanError, Pool, Queue, Sizes, Slot, Tiling,
};
use config::{SHIFTED, SMALL};
use std::path::Path;
use std::process::Command;

/// GPT-2 124M: 148 tensors.
const GPT2: ModelConfig = ModelConfig {
    vocab_size: 50257,
    block_size: 1024,
    n_layer: 12,
    n_head: 12,
    d_model: 768,
    d_ff: 3072,
    dropout: 0.0,
    ..SMALL
};
/// Heads that share keys and values, norms of heads, rotary positions, a gate.
const GROUPED: ModelConfig = ModelConfig {
    bias: false,
    arch: Architecture { n_kv_head: Some(2), qk_norm: true, ..Architecture::LLAMA },
    ..SMALL
};
const ADAPTERS: Adapters = Adapters {
    rank: 4,
    scale: 0.5,
    sites: AdapterSites::of(&[AdapterSite::Queries, AdapterSite::Values, AdapterSite::Up]),
};

/// A plan made here, in a `const`, with what it was made of.
struct Made {
    plan: Plan,
    adapters: Option<&'static Adapters>,
    tiling: Tiling,
}

const fn of(
    config: &ModelConfig,
    (sequences, tokens): (usize, usize),
    workers: usize,
    mode: Mode,
    set: KernelSet,
) -> Made {
    let batch = BatchShape { sequences, tokens };
    let plan = Plan::fixed(config, batch, workers, mode, set);
    Made { plan, adapters: None, tiling: Tiling::DEFAULT }
}

const fn adapted(config: &ModelConfig, workers: usize, packing: Packing, set: KernelSet) -> Made {
    let batch = BatchShape { sequences: 3, tokens: 40 };
    let tiling = Tiling { packing: Some(packing), ..Tiling::DEFAULT };
    let adapters = Some(&ADAPTERS);
    match Plan::of_set(config, adapters, batch, workers, &tiling, Mode::Train, set) {
        Ok(plan) => Made { plan, adapters, tiling },
        Err(error) => error.stop(),
    }
}

macro_rules! on_every_set {
    ($($make:ident($($argument:expr),*);)*) => {
        /// All of them, for one name of kernels.
        const fn made(set: KernelSet) -> [Made; [$(stringify!($make)),*].len()] {
            [$($make($($argument,)* set)),*]
        }
    };
}

on_every_set! {
    of(&SMALL, (4, 40), 1, Mode::Train);
    of(&SMALL, (5, 33), 3, Mode::Recompute);
    of(&SHIFTED, (1, 40), 2, Mode::Evaluate);
    of(&SHIFTED, (7, 1), 64, Mode::Train);
    of(&GROUPED, (2, 40), 1, Mode::Recompute);
    of(&GROUPED, (1, 39), 5, Mode::Train);
    of(&GPT2, (1, 256), 2, Mode::Train);
    of(&GPT2, (8, 1024), 8, Mode::Recompute);
    adapted(&GROUPED, 1, Packing::Kept);
    adapted(&GROUPED, 4, Packing::Fresh);
}

/// Whether kernels of a name are there, and which.
fn kernels(set: KernelSet) -> Option<&'static Kernels> {
    let tables = Isa::ALL.into_iter().filter_map(Kernels::for_isa);
    let of_each = |k: &'static Kernels| [k, k.converting(), k.with_dtype(Dtype::Bf16)];
    tables.flat_map(of_each).find(|kernels| kernels.set() == set)
}

fn check(made: &[Made], set: KernelSet) {
    for (i, Made { plan, adapters, tiling }) in made.iter().enumerate() {
        assert_eq!(plan.set(), set);
        let (config, batch) = (plan.config(), plan.batch());
        let (workers, mode) = (plan.workers(), plan.mode());
        let again = Plan::of_set(config, *adapters, batch, workers, tiling, mode, set);
        assert_eq!(again.as_ref(), Ok(plan), "{set} {i}");
        // Nobody's eyes but the machine's own are needed for what is on it.
        let Some(kernels) = kernels(set) else { continue };
        let at_run_time =
            Plan::with_adapters(config, *adapters, batch, workers, tiling, mode, kernels);
        let at_run_time = at_run_time.expect("it was made before");
        assert_eq!(&at_run_time, plan, "{set} {i}");
        for pool in Pool::ALL {
            assert_eq!(at_run_time.bytes(pool), plan.bytes(pool), "{set} {i} {pool:?}");
        }
        assert_eq!(at_run_time.sizes(), plan.sizes());
        // An engine takes either for the other.
        let mut ops = vec![Op::EMPTY; plan.ops()];
        let mut slots: Vec<_> = (0..plan.slots()).map(|_| Slot::new()).collect();
        let mut words: Vec<_> = (0..plan.words()).map(|_| 0.into()).collect();
        let queue = Queue { ops: &mut ops, slots: &mut slots, words: &mut words };
        assert!(Engine::new(plan, queue).is_ok());
    }
}

macro_rules! check_sets {
    ($($set:expr),* $(,)?) => {
        $({
            const MADE: &[Made] = &made($set);
            check(MADE, $set);
            const SPEECH: [GeneratePlan; 3] = [
                GeneratePlan::fixed(&SMALL, 1, $set),
                GeneratePlan::fixed(&GROUPED, 3, $set),
                GeneratePlan::fixed(&GPT2, 8, $set),
            ];
            for plan in &SPEECH {
                let again = GeneratePlan::of_set(plan.config(), plan.workers(), $set);
                assert_eq!(again.as_ref(), Ok(plan));
                if let Some(kernels) = kernels($set) {
                    let workers = plan.workers();
                    let there = GeneratePlan::with_workers(plan.config(), workers, kernels);
                    assert_eq!(there.as_ref(), Ok(plan));
                }
            }
        })*
    };
}

#[test]
fn a_plan_of_the_compilers_is_the_one_at_run_time() {
    check_sets!(KernelSet::SCALAR, KernelSet::SCALAR.converting());
    #[cfg(target_arch = "x86_64")]
    check_sets!(
        KernelSet::AVX,
        KernelSet::AVX2,
        KernelSet::AVX2.converting(),
        KernelSet::AVX512,
        KernelSet::AVX512_BF16,
        KernelSet::AMX,
    );
    // Sets are not all alike, or the test says nothing.
    let [scalar, other] = [KernelSet::SCALAR, KernelSet::SCALAR.converting()].map(made);
    assert!(scalar.iter().zip(&other).all(|(a, b)| a.plan != b.plan));
}

#[test]
fn memory_for_any_kernels_is_enough_for_each_and_wanted_by_one() {
    const SHAPE: BatchShape = BatchShape { sequences: 3, tokens: 40 };
    const SIZES: Sizes = Sizes::on_any(&SMALL, SHAPE, 3, Mode::Train);
    let sizes =
        KernelSet::ALL.into_iter().filter(|set| set.footprint().is_some()).flat_map(|set| {
            (1..=3)
                .map(move |workers| Plan::fixed(&SMALL, SHAPE, workers, Mode::Train, set).sizes())
        });
    let sizes: Vec<Sizes> = sizes.collect();
    assert!(sizes.iter().all(|sizes| sizes.most(SIZES) == SIZES));
    let of_each = |sizes: &Sizes| [sizes.lines, sizes.ops, sizes.slots, sizes.words];
    for (i, length) in of_each(&SIZES).into_iter().enumerate() {
        assert!(sizes.iter().any(|sizes| of_each(sizes)[i] == length), "{i}: {length}");
    }
}

#[test]
fn names_of_no_kernels_have_no_plan() {
    let set = KernelSet { dtype: Dtype::Bf16, ..KernelSet::SCALAR };
    let batch = BatchShape { sequences: 1, tokens: 8 };
    let plan = Plan::of_set(&SMALL, None, batch, 1, &Tiling::DEFAULT, Mode::Train, set);
    let error = plan.unwrap_err();
    assert_eq!(error, PlanError::NoKernels(set));
    let text = "there are no kernels of scalar with products of bf16 on this target";
    assert_eq!(error.to_string(), text);
    assert_eq!(GeneratePlan::of_set(&SMALL, 1, set).unwrap_err(), error);
    let converted = PlanError::NoKernels(KernelSet::AMX.converting()).to_string();
    assert_eq!(
        converted,
        "there are no kernels of amx with converted products of bf16 on this target"
    );
}

#[test]
fn what_does_not_fit_is_not_compiled_and_says_its_numbers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/over_budget");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("over_budget");
    let output = Command::new(env!("CARGO"))
        .args(["check", "--quiet", "--locked", "--target-dir"])
        .arg(&target)
        .current_dir(&folder)
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it is compiled: {said}");

    let plan = Plan::fixed(&small::CONFIG, small::SHAPE, 1, Mode::Train, KernelSet::SCALAR);
    let need = plan.total_bytes().expect("it is small");
    let pools = Pool::ALL.map(|pool| format!("{} {}", pool.name(), plan.bytes(pool))).join(", ");
    let over = |by: usize| {
        let bytes = need - by;
        format!("the plan needs {need} bytes, {by} more than the {bytes} there are: {pools}")
    };
    let speech = GeneratePlan::fixed(&small::CONFIG, 1, KernelSet::SCALAR);
    let [packed, cache, activations] =
        [speech.packed_lines(), speech.cache_lines(), speech.activation_lines()].map(|n| 64 * n);
    let all = packed + cache + activations;
    let evaluation = Sizes::on_any(&small::CONFIG, small::SHAPE, 1, Mode::Evaluate).bytes();
    let expected = [
        over(1),
        over(need - 256 * 1024),
        format!(
            "the plan needs {all} bytes, {} more than the 1000 there are: packed {packed}, \
            cache {cache}, activations {activations}",
            all - 1000
        ),
        format!(
            "the memory needs {evaluation} bytes, {} more than the 999 there are",
            evaluation - 999
        ),
        "d_model 32 is not a multiple of n_head 3: every head needs as many columns".to_owned(),
        "dropout is 1.5: it must be at least 0 and below 1".to_owned(),
        "sequences of 33 tokens exceed the model's block_size 32".to_owned(),
        "there are no kernels of scalar with products of bf16 on this target".to_owned(),
    ];
    for text in &expected {
        assert!(said.contains(text), "missing: {text}\n{said}");
    }
    let errors = said.matches("error[E0080]").count();
    assert_eq!(errors, expected.len(), "what fits is compiled: {said}");
}
