//! Products with an addend: it is added to the sums, each once, and what finishes a product takes the
//! sum of both as it would take the product's alone.

mod common;

use cllm_kernels::{Bf16, Epilogue, Finish, Kernels, MatMut, MatRef, Operand, OperandMut, Packed};
use common::epilogues::{EPILOGUES, More, epilogue};
use common::{Grid, Rng, each_dtype, panics, scratch};

/// Rows, columns and depth: edges of panels and strips, several blocks of depth, few rows and many.
const SHAPES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (5, 33, 7),
    (13, 256, 256),
    (97, 290, 257),
    (6, 600, 40),
    (3, 48, 1025),
    (40, 70, 512),
];

/// How a product is made.
#[derive(Clone, Copy, Debug)]
struct Way {
    fresh: bool,
    /// The result is of bf16.
    halves: bool,
    kind: usize,
}

/// The result of `A B + addend` behind its epilogue, and what that left beside it.
fn product(
    kernels: &Kernels,
    rng: &mut Rng,
    (a, b): (MatRef<'_>, MatRef<'_>),
    addend: Option<&Grid>,
    more: &More,
    way: Way,
) -> (Vec<u32>, Vec<u32>) {
    let (m, n, k) = (a.rows(), b.cols(), b.rows());
    let (mut c, mut pre) = (Grid::blank_somewhere(rng, m, n), Grid::blank_somewhere(rng, m, n));
    pre.fill(|i, j| more.other.at(i, j));
    let mut halves: Vec<Bf16> = pre.values().into_iter().map(Bf16::from_f32).collect();
    let mut half_c = vec![Bf16::default(); m * n];
    let (to, kept): (OperandMut<'_>, OperandMut<'_>) = if way.halves {
        let of = |data| OperandMut::Half(MatMut::new(data, m, n, n));
        (of(&mut half_c), of(&mut halves))
    } else {
        (c.view_mut().into(), pre.view_mut().into())
    };
    let finish =
        Finish { addend: addend.map(Grid::view), epilogue: epilogue(way.kind, more, kept) };
    if way.fresh {
        let mut room = scratch(rng, kernels.fresh_scratch_len(m, k, n, way.halves));
        kernels.gemm_fresh(a, b, to, finish, room.slice_mut());
    } else {
        let mut packed = vec![f32::NAN; kernels.packed_len(k, n).unwrap()];
        kernels.pack(b, &mut packed);
        let need = kernels.gemm_scratch_len(m, k).max(kernels.gemm_into_halves_scratch_len(m, k));
        let mut room = scratch(rng, Some(need));
        let a: Operand<'_> = a.into();
        kernels.gemm(a, Packed::new(&packed, k, n), to, false, finish, room.slice_mut());
    }
    if way.halves {
        let bits = |x: &[Bf16]| x.iter().map(|x| x.to_f32().to_bits()).collect();
        return (bits(&half_c), bits(&halves));
    }
    c.assert_frame("C");
    pre.assert_frame("pre");
    (c.bits(), pre.bits())
}

#[test]
fn an_addend_is_added_once_before_the_epilogue() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(6);
        for (m, n, k) in SHAPES {
            let [a, b] = [(m, k), (k, n)].map(|(rows, cols)| Grid::random(&mut rng, rows, cols));
            let addend = Grid::random(&mut rng, m, n);
            let other = Grid::random(&mut rng, m, n);
            let more = More { bias: Grid::vector(&mut rng, n), other };
            let views = (a.view(), b.view());
            let plain = Way { fresh: false, halves: false, kind: 0 };
            let (bare, _) = product(kernels, &mut rng, views, None, &more, plain);
            let mut sum = Grid::blank(m, n, 0, 1);
            sum.fill(|i, j| f32::from_bits(bare[i * n + j]) + addend.at(i, j));
            let (added, _) = product(kernels, &mut rng, views, Some(&addend), &more, plain);
            assert!(added == sum.bits(), "{kernels:?} {m}x{n}x{k}");
            // A product of no depth is all addend.
            let (no_a, no_b) = (Grid::blank(m, 0, 0, 1), Grid::blank(0, n, 0, 1));
            for fresh in [false, true] {
                for halves in [false, true] {
                    if halves && !kernels.keeps_halves() {
                        continue;
                    }
                    for kind in 0..EPILOGUES {
                        // Residuals are of floats.
                        if halves && matches!(kind, 3 | 4) {
                            continue;
                        }
                        let way = Way { fresh, halves, kind };
                        let got = product(kernels, &mut rng, views, Some(&addend), &more, way);
                        let none = (no_a.view(), no_b.view());
                        let want = product(kernels, &mut rng, none, Some(&sum), &more, way);
                        assert!(got == want, "{kernels:?} {m}x{n}x{k} {way:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn an_addend_of_another_shape_is_refused() {
    let kernels = Kernels::scalar();
    let zeros = [0.0; 64];
    let refused = |addend: MatRef<'_>| {
        panics(|| {
            let (a, b) = (MatRef::new(&zeros, 3, 4, 4), MatRef::new(&zeros, 4, 5, 5));
            let (mut c, mut room) = ([0.0; 15], vec![0.0; 4096]);
            let finish = Finish { addend: Some(addend), epilogue: Epilogue::None };
            kernels.gemm_fresh(a, b, MatMut::new(&mut c, 3, 5, 5), finish, &mut room);
        })
    };
    assert!(!refused(MatRef::new(&zeros, 3, 5, 9)));
    assert!(refused(MatRef::new(&zeros, 3, 4, 5)) && refused(MatRef::new(&zeros, 2, 5, 5)));
    assert!(refused(MatRef::new(&zeros, 5, 3, 3).t()), "columns that are not contiguous");
}
