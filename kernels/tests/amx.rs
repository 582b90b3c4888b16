//! Products in the tiles of AMX round as the manual says, wherever they are cut.

mod common;

use cllm_kernels::{
    Bf16, Dtype, Epilogue, Isa, Kernels, MatMut, MatRef, Operand, OperandMut, Packed,
};
use common::{Rng, room};

/// The kernels, or a word that they are not tested here.
fn kernels() -> Option<&'static Kernels> {
    let kernels = Kernels::for_isa(Isa::Amx).map(|kernels| kernels.with_dtype(Dtype::Bf16));
    if kernels.is_none() {
        println!("no AMX here: skipped");
    }
    kernels
}

/// Elements of bf16 of both signs and several magnitudes, so that every order of additions
/// rounds differently.
fn random(rng: &mut Rng, n: usize) -> Vec<f32> {
    let one = |rng: &mut Rng| rng.float() * f32::from(2_u8.pow(rng.below(8) as u32));
    (0..n).map(|_| Bf16::from_f32(one(rng)).to_f32()).collect()
}

/// The instruction on one element: products of even and of odd places in sums of their own over
/// 32 places, each by fused multiply-adds.
fn in_tiles(a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, k: usize, start: f32) -> f32 {
    let mut sum = start;
    for first in (0..k).step_by(32) {
        let mut parts = [0.0_f32; 2];
        for p in first..k.min(first + 32) {
            let part = &mut parts[p % 2];
            *part = a(p).mul_add(b(p), *part);
        }
        sum += parts[0] + parts[1];
    }
    sum
}

#[test]
fn every_product_has_the_bits_of_the_instruction() {
    let Some(kernels) = kernels() else { return };
    let mut rng = Rng::new(1);
    for (m, n, k) in [(1, 1, 1), (1, 32, 32), (16, 7, 40), (17, 33, 64), (40, 70, 600)] {
        for accumulate in [false, true] {
            let (a, b) = (random(&mut rng, m * k), random(&mut rng, k * n));
            let before = random(&mut rng, m * n);
            let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
            kernels.pack(MatRef::new(&b, k, n, n), &mut packed);
            let (mut c, mut unpacked) = (before.clone(), before.clone());
            kernels.gemm(
                MatRef::new(&a, m, k, k),
                Packed::new(&packed, k, n),
                MatMut::new(&mut c, m, n, n),
                accumulate,
                Epilogue::None,
                &mut room(kernels, m, k),
            );
            let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
            let (a_view, b_view) = (MatRef::new(&a, m, k, k), MatRef::new(&b, k, n, n));
            let out = MatMut::new(&mut unpacked, m, n, n);
            kernels.gemm_unpacked(a_view, b_view, out, accumulate, &mut scratch);
            for i in 0..m {
                for j in 0..n {
                    let e = i * n + j;
                    let start = if accumulate { before[e] } else { 0.0 };
                    let want = in_tiles(|p| a[i * k + p], |p| b[p * n + j], k, start).to_bits();
                    let at = format!("{m}x{n}x{k} at ({i}, {j}), accumulate: {accumulate}");
                    assert_eq!(c[e].to_bits(), want, "{at}");
                    assert_eq!(unpacked[e].to_bits(), want, "{at}, unpacked");
                }
            }
        }
    }
}

/// The bits of a product and nothing else.
fn product_of(
    kernels: &Kernels,
    a: Operand<'_>,
    b: Packed<'_>,
    (m, n, k): (usize, usize, usize),
) -> Vec<u32> {
    let mut c = vec![0.0; m * n];
    let out = MatMut::new(&mut c, m, n, n);
    kernels.gemm(a, b, out, false, Epilogue::None, &mut room(kernels, m, k));
    c.into_iter().map(f32::to_bits).collect()
}

/// Rows that are whole cache lines are multiplied where they lie, all others from a copy.
#[test]
fn rows_in_place_and_copied_give_the_same_bits() {
    let Some(kernels) = kernels() else { return };
    let mut rng = Rng::new(2);
    let (n, k) = (40, 512);
    for m in [1, 16, 31, 32, 33, 100] {
        let (a, b) = (random(&mut rng, m * k), random(&mut rng, k * n));
        let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
        kernels.pack(MatRef::new(&b, k, n, n), &mut packed);
        let product =
            |a: Operand<'_>| product_of(kernels, a, Packed::new(&packed, k, n), (m, n, k));
        let want = product(MatRef::new(&a, m, k, k).into());
        for gap in [0, 2, 32] {
            let stride = k + gap;
            let mut halves = vec![Bf16::default(); 32 + m * stride];
            let line = (0..32).find(|at| halves[*at..].as_ptr().addr() % 64 == 0).unwrap();
            for start in [line, (line + 2) % 32] {
                for (i, row) in a.chunks(k).enumerate() {
                    for (j, x) in row.iter().enumerate() {
                        halves[start + i * stride + j] = Bf16::from_f32(*x);
                    }
                }
                let a = Operand::Half(MatRef::new(&halves[start..], m, k, stride));
                assert!(product(a) == want, "{m} rows {stride} apart from {start} on");
            }
        }
    }
}

/// Rows of bf16 may lie less than their length apart: what is read may overlap.
#[test]
fn rows_that_overlap_are_read_where_they_are() {
    let Some(kernels) = kernels() else { return };
    let mut rng = Rng::new(4);
    let (n, k, stride) = (40, 64, 32);
    let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
    kernels.pack(MatRef::new(&random(&mut rng, k * n), k, n, n), &mut packed);
    for m in [1, 2, 33] {
        // Not a word more than they have.
        let len = (m - 1) * stride + k;
        let floats = random(&mut rng, len);
        let mut halves = vec![Bf16::default(); 32 + len];
        let line = (0..32).find(|at| halves[*at..].as_ptr().addr() % 64 == 0).unwrap();
        for (to, from) in halves[line..].iter_mut().zip(&floats) {
            *to = Bf16::from_f32(*from);
        }
        let product =
            |a: Operand<'_>| product_of(kernels, a, Packed::new(&packed, k, n), (m, n, k));
        let in_place = Operand::Half(MatRef::new(&halves[line..line + len], m, k, stride));
        assert!(
            product(in_place) == product(MatRef::new(&floats, m, k, stride).into()),
            "{m} rows"
        );
    }
}

/// Floats, rounded.
fn halves(floats: &[f32]) -> Vec<Bf16> {
    floats.iter().map(|x| Bf16::from_f32(*x)).collect()
}

/// A part of one of two matrices, of the floats or of the others.
fn written<'a>(
    (is_float, at, (rows, cols, stride)): (bool, usize, (usize, usize, usize)),
    floats: &'a mut [f32],
    halves: &'a mut [Bf16],
) -> OperandMut<'a> {
    match is_float {
        true => OperandMut::Float(MatMut::new(&mut floats[at..], rows, cols, stride)),
        false => OperandMut::Half(MatMut::new(&mut halves[at..], rows, cols, stride)),
    }
}

/// What is behind a tile is done while the next one is multiplied, in an order that depends on how many columns there are.
/// Calls for single tiles have no next one.
#[test]
fn products_in_one_call_have_the_bits_of_single_tiles() {
    let Some(kernels) = kernels() else { return };
    let mut rng = Rng::new(3);
    // Few columns, more, and more than stay in L2; deep ones take several blocks, as do many rows.
    let shapes = [(70, 256, 32), (150, 200, 600), (70, 300, 600), (130, 520, 64), (40, 1100, 256)];
    for (m, n, k) in shapes {
        let (a, b) = (random(&mut rng, m * k), random(&mut rng, k * n));
        let (bias, before) = (random(&mut rng, n), random(&mut rng, m * n));
        let mut packed = vec![0.0; kernels.packed_len(k, n).unwrap()];
        kernels.pack(MatRef::new(&b, k, n, n), &mut packed);
        let half_a = halves(&a);
        for kind in 0..6 {
            // Rows of C that are whole cache lines, and others.
            for stride in [n.next_multiple_of(32), n + 2] {
                let mut c = vec![0.0_f32; m * stride];
                for (i, row) in before.chunks(n).enumerate() {
                    c[i * stride..][..n].copy_from_slice(row);
                }
                let half_c = halves(&c);
                let product = |height: usize, width: usize| {
                    let (mut c, mut other) = (c.clone(), c.clone());
                    let (mut half_c, mut half_other) = (half_c.clone(), half_c.clone());
                    for i in (0..m).step_by(height) {
                        for j in (0..n).step_by(width) {
                            let (rows, cols) = (height.min(m - i), width.min(n - j));
                            let bias = &bias[j..j + cols];
                            let b = kernels.packed_columns(Packed::new(&packed, k, n), j..j + cols);
                            let a = match kind % 2 {
                                0 => Operand::Float(MatRef::new(&a[i * k..], rows, k, k)),
                                _ => Operand::Half(MatRef::new(&half_a[i * k..], rows, k, k)),
                            };
                            let size = (rows, cols, stride);
                            let to = (kind < 4, i * stride + j, size);
                            let pre = written(to, &mut other, &mut half_other);
                            let out = written(to, &mut c, &mut half_c);
                            let epilogue = match (kind, pre) {
                                (0, _) => Epilogue::None,
                                (1, _) => Epilogue::Bias(bias),
                                (2, OperandMut::Float(other)) => {
                                    let residual = other.into_ref();
                                    Epilogue::Residual { bias: Some(bias), residual, dropout: None }
                                }
                                (3 | 4, pre) => Epilogue::Gelu { bias: Some(bias), pre },
                                (_, pre) => Epilogue::GeluGrad { pre },
                            };
                            let scratch = kernels.gemm_into_halves_scratch_len(rows, k);
                            let scratch = scratch.max(kernels.gemm_scratch_len(rows, k));
                            kernels.gemm(a, b, out, kind < 3, epilogue, &mut vec![0.0; scratch]);
                        }
                    }
                    let floats =
                        [c, other].map(|m| m.into_iter().map(f32::to_bits).collect::<Vec<_>>());
                    (floats, [half_c, half_other])
                };
                let what = format!("{m}x{n}x{k}, epilogue {kind}, rows {stride} apart");
                let (whole, tiles) = (product(m, n), product(32, 32));
                assert!(whole == tiles, "{what}");
                assert!(
                    whole.0[0] != c.iter().map(|x| x.to_bits()).collect::<Vec<_>>() || kind > 3
                );
                assert!(whole.1[0] != half_c || kind < 4, "{what}: nothing was written");
            }
        }
    }
}

/// Gradients of weights pack some columns at a time, and sum those then.
#[test]
fn gradients_of_many_columns_have_the_bits_of_single_panels() {
    let Some(kernels) = kernels() else { return };
    let mut rng = Rng::new(5);
    let (m, n, k) = (70, 600, 300);
    let (a, b) = (halves(&random(&mut rng, k * m)), halves(&random(&mut rng, k * n)));
    let before = random(&mut rng, m * n + n);
    for accumulate in [false, true] {
        let product = |height: usize, width: usize| {
            let (mut c, mut sums) = (before[..m * n].to_vec(), before[m * n..].to_vec());
            for i in (0..m).step_by(height) {
                for j in (0..n).step_by(width) {
                    let (rows, cols) = (height.min(m - i), width.min(n - j));
                    let a = Operand::Half(MatRef::new(&a[i..], k, rows, m)).t();
                    let b = Operand::Half(MatRef::new(&b[j..], k, cols, n));
                    let out = MatMut::new(&mut c[i * n + j..], rows, cols, n);
                    let scratch =
                        &mut vec![0.0; kernels.unpacked_scratch_len(rows, cols, k).unwrap()];
                    if i == 0 {
                        let sums = &mut sums[j..j + cols];
                        kernels.gemm_unpacked_with_sums(a, b, out, sums, accumulate, scratch);
                    } else {
                        kernels.gemm_unpacked(a, b, out, accumulate, scratch);
                    }
                }
            }
            [c, sums].map(|m| m.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert!(product(m, n) == product(32, 32), "accumulate: {accumulate}");
    }
}

#[test]
fn what_is_not_multiplied_in_tiles_has_the_name_of_avx512() {
    let Some(tiles) = kernels() else { return };
    let avx512 = Kernels::for_isa(Isa::Avx512).unwrap();
    assert_eq!(tiles.set().to_string(), "amx, bf16 products");
    assert_ne!(tiles.set(), avx512.with_dtype(Dtype::Bf16).set());
    assert_eq!(tiles.with_dtype(Dtype::F32).set(), avx512.set());
    assert_eq!(tiles.converting().set(), avx512.converting().set());
    assert_eq!(tiles.with_dtype(Dtype::F32).with_dtype(Dtype::Bf16).set(), tiles.set());
    assert_eq!(Isa::best(), Isa::Amx);
}

#[test]
fn the_peak_pass_counts_its_operations() {
    let Some(kernels) = kernels() else { return };
    for iterations in [0, 2, 1000] {
        let one = 4 * 16 * 16 * 32 * 2;
        assert_eq!(kernels.fma_peak_pass(iterations), (iterations * one, 1024.0));
    }
}
