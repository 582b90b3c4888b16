//! Documents that lie in a sequence one behind the other are as good as sequences of their own:
//! losses and gradients are those of each by itself, whatever lies beside it.

mod support;

use cllm_core::{
    Architecture, Batch, BatchShape, Blocking, IGNORE, Isa, Kernels, Loss, Mode, ModelConfig,
    Param, Plan, StepError, Tiling, Trainer,
};
use support::config::{LLAMA, SHIFTED, SMALL};
use support::memory;

const SHAPE: BatchShape = BatchShape { sequences: 2, tokens: 70 };
/// Tokens of the documents of each sequence; what is behind them is filled up.
const DOCUMENTS: [&[usize]; 2] = [&[30, 1, 25], &[3, 60]];

fn models() -> [ModelConfig; 5] {
    let base = |config| ModelConfig { block_size: SHAPE.tokens, dropout: 0.0, ..config };
    let plain = ModelConfig { arch: Architecture::LLAMA, bias: false, n_head: 4, ..SMALL };
    let windowed = Architecture { window: Some(11), ..Architecture::GPT2 };
    let windowed = ModelConfig { arch: windowed, ..SMALL };
    [base(SMALL), base(LLAMA), base(plain), base(windowed), base(SHIFTED)]
}

fn with_trainer<R>(
    plan: &Plan,
    kernels: &'static Kernels,
    test: impl FnOnce(&mut Trainer<'_>) -> R,
) -> R {
    memory::with_trainer(plan, kernels, 9, |trainer| {
        // Larger than the initial ones: what attention sees then counts.
        trainer.parameters_mut().iter_mut().for_each(|x| *x *= 2.0);
        if let Some(previous) = trainer.plan().table().spec(Param::Previous) {
            trainer.parameters_mut()[previous.range()].fill(0.7);
        }
        test(trainer)
    })
}

/// A batch of the documents, and each of them in a batch of its own.
struct Case {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    starts: Vec<u32>,
    /// First token and tokens of each document.
    documents: Vec<(usize, usize)>,
}

impl Case {
    fn new() -> Self {
        let n = SHAPE.sequences * SHAPE.tokens;
        let mut x = 7_u32;
        let mut id = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 16) % SMALL.vocab_size as u32
        };
        let tokens: Vec<u32> = (0..n).map(|_| id()).collect();
        let (mut targets, mut starts) = (vec![IGNORE; n], vec![0; n]);
        let mut documents = Vec::new();
        for (sequence, lengths) in DOCUMENTS.iter().enumerate() {
            let first = sequence * SHAPE.tokens;
            let filled: usize = lengths.iter().sum();
            let filling = [SHAPE.tokens - filled];
            let mut place = 0;
            for (number, &len) in lengths.iter().chain(&filling).enumerate() {
                starts[first + place..first + place + len].fill(place as u32);
                if number < lengths.len() {
                    documents.push((first + place, len));
                    // A document of one token still asks for one.
                    for at in 0..len {
                        targets[first + place + at] = id();
                    }
                }
                place += len;
            }
        }
        Self { tokens, targets, starts, documents }
    }

    fn batch(&self) -> Batch<'_> {
        Batch { tokens: &self.tokens, targets: &self.targets, starts: Some(&self.starts) }
    }

    fn counted(&self) -> usize {
        self.batch().counted()
    }
}

fn gradients(trainer: &mut Trainer<'_>, batches: &[Batch<'_>], counted: usize) -> (f64, Vec<f32>) {
    let loss: f64 =
        batches.iter().map(|batch| trainer.accumulate(batch, counted).unwrap().sum).sum();
    (loss, trainer.gradients().to_vec())
}

#[test]
fn documents_side_by_side_are_as_sequences_of_their_own() {
    let case = Case::new();
    for config in models() {
        for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
            let plan = Plan::new(&config, SHAPE, 1, Mode::Train, kernels).unwrap();
            let (packed, apart) = with_trainer(&plan, kernels, |trainer| {
                let packed = gradients(trainer, &[case.batch()], case.counted());
                // The same step again, of a document a micro-batch.
                let own: Vec<(Vec<u32>, Vec<u32>)> = case
                    .documents
                    .iter()
                    .map(|&(first, len)| {
                        let n = plan.tokens();
                        let (mut tokens, mut targets) = (vec![5; n], vec![IGNORE; n]);
                        tokens[..len].copy_from_slice(&case.tokens[first..first + len]);
                        targets[..len].copy_from_slice(&case.targets[first..first + len]);
                        (tokens, targets)
                    })
                    .collect();
                let batches: Vec<Batch<'_>> = own.iter().map(|(x, y)| Batch::new(x, y)).collect();
                let kept = trainer.parameters().to_vec();
                let again: Result<(), ()> = trainer.restore(0, |p, _| {
                    p.copy_from_slice(&kept);
                    Ok(())
                });
                again.unwrap();
                let apart = gradients(trainer, &batches, case.counted());
                let evaluated = trainer.evaluate(&case.batch()).unwrap();
                let Loss { sum, counted } = evaluated;
                assert_eq!((sum, counted), (packed.0, case.counted()), "evaluation");
                (packed, apart)
            });
            let what = format!("{:?} {:?}", config.arch, kernels.isa());
            assert!((packed.0 / apart.0 - 1.0).abs() < 1e-6, "{what}: {packed:?} {apart:?}");
            for spec in plan.table().iter() {
                let (packed, apart) = (&packed.1[spec.range()], &apart.1[spec.range()]);
                let most = apart.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                for (i, (x, y)) in packed.iter().zip(apart).enumerate() {
                    let error = (x - y).abs();
                    let bound = 1e-5 * most + 1e-9;
                    assert!(error <= bound, "{what}: {}[{i}]: {x} for {y}", spec.name());
                }
            }
        }
    }
}

#[test]
fn documents_have_the_same_bits_for_any_tiles_and_workers() {
    let case = Case::new();
    let kernels = Kernels::detect();
    let small = Blocking { row_block: 32, weight_rows: 32, weight_cols: 32, ..Blocking::default() };
    for config in models() {
        let config = ModelConfig { dropout: 0.1, ..config };
        let mut first = None;
        for workers in [1, 3, 16] {
            for blocking in [Blocking::default(), small] {
                for mode in [Mode::Train, Mode::Recompute] {
                    let tiling = Tiling { workers: Some(workers), packing: None, blocking };
                    let plan = Plan::with_tiling(&config, SHAPE, 1, &tiling, mode, kernels);
                    let plan = plan.unwrap();
                    let (loss, gradients) = with_trainer(&plan, kernels, |trainer| {
                        gradients(trainer, &[case.batch()], case.counted())
                    });
                    let bits: Vec<u32> = plan
                        .table()
                        .iter()
                        .flat_map(|spec| gradients[spec.range()].to_vec())
                        .map(f32::to_bits)
                        .collect();
                    let result = (loss.to_bits(), bits);
                    let first = first.get_or_insert_with(|| result.clone());
                    assert!(*first == result, "{:?} {tiling:?} {mode:?}", config.arch);
                }
            }
        }
    }
}

#[test]
fn starts_that_are_none_of_a_document_are_refused() {
    let case = Case::new();
    let kernels = Kernels::detect();
    let plan = Plan::new(&models()[0], SHAPE, 1, Mode::Train, kernels).unwrap();
    with_trainer(&plan, kernels, |trainer| {
        let mut refused = |starts: &[u32]| {
            let batch = Batch { starts: Some(starts), ..case.batch() };
            match trainer.accumulate(&batch, case.counted()) {
                Err(StepError::Documents { position }) => Some(position),
                Err(error) => panic!("{error}"),
                Ok(_) => None,
            }
        };
        let with = |at: usize, start: u32| {
            let mut starts = case.starts.clone();
            starts[at] = start;
            starts
        };
        assert_eq!(refused(&case.starts), None);
        // A document more, of one token or up to the next one's first.
        assert_eq!(refused(&with(55, 55)), None);
        assert_eq!(refused(&with(5, 5)), Some(6), "those behind it are of the one before");
        assert_eq!(refused(&with(5, 1)), Some(5), "the place of another token");
        assert_eq!(refused(&with(5, 6)), Some(5), "behind the token");
        assert_eq!(refused(&with(5, u32::MAX)), Some(5));
        // The second sequence begins anew.
        assert_eq!(refused(&with(70, 31)), Some(70));
        assert_eq!(refused(&case.starts[1..]), Some(139));
    });
}
