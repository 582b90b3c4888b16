//! Products of operands that are not packed beforehand, weight gradients: wherever operands lie and however
//! results are written, the same bits. What they are is checked in `gemm.rs`.

mod common;

use cllm_kernels::{MatMut, MatRef, Write};
use common::{Grid, Rng, each_dtype};

/// Read where they lie or packed first, as how far apart rows are and what is adjacent has it: the same bits.
#[test]
fn unpacked_operands_have_the_same_bits_wherever_they_lie() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(17);
        for (m, n, k) in [
            (1, 32, 9),
            (12, 32, 256),
            (13, 33, 300),
            (50, 70, 513),
            (24, 100, 1),
            (3, 5, 40),
            (6, 150, 300),
        ] {
            let (at, b) = (Grid::random(&mut rng, k, m), Grid::random(&mut rng, k, n));
            let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
            // Elements of `from` in rows so far apart.
            let spread = |from: &Grid, cols: usize, stride: usize| {
                let mut to = vec![f32::NAN; k * stride];
                for (i, row) in to.chunks_mut(stride).enumerate() {
                    row[..cols].copy_from_slice(from.view().row(i));
                }
                to
            };
            let turned = |from: &Grid, cols: usize| {
                (0..cols * k).map(|e| from.at(e % k, e / k)).collect::<Vec<_>>()
            };
            let (a_packed, b_packed) = (turned(&at, m), turned(&b, n));
            for accumulate in [false, true] {
                let most = scratch.len();
                let mut product = |a: MatRef<'_>, b: MatRef<'_>, len: usize| {
                    let mut c = vec![0.5; m * n];
                    let out = MatMut::new(&mut c, m, n, n);
                    // What an earlier product left there does not help.
                    scratch.fill(f32::NAN);
                    kernels.gemm_unpacked(a, b, out, accumulate, &mut scratch[..len]);
                    assert!(scratch[len..].iter().all(|x| x.to_bits() == f32::NAN.to_bits()));
                    c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                let want = product(
                    MatRef::new(&a_packed, m, k, k),
                    MatRef::new(&b_packed, n, k, k).t(),
                    most,
                );
                // Dense; of lines; 1 KiB apart, which is packed where vectors are short.
                for a_row in [m, m.next_multiple_of(16) + 16, m.next_multiple_of(256)] {
                    for b_row in [n, n.next_multiple_of(16) + 16, n.next_multiple_of(256)] {
                        let (a, b) = (spread(&at, m, a_row), spread(&b, n, b_row));
                        let (a, b) = (MatRef::new(&a, k, m, a_row), MatRef::new(&b, k, n, b_row));
                        let what =
                            format!("{kernels:?} {m}x{n}x{k}, rows {a_row} and {b_row} apart");
                        // No scratch but what such operands want.
                        let mut check = |a: MatRef<'_>, a_row, b: MatRef<'_>, b_row| {
                            let (x, dy) = ((m, a_row), (n, b_row));
                            let need = kernels.footprint().lying_scratch_len(x, dy, k).unwrap();
                            assert_eq!(product(a, b, need), want, "{what}, {a_row:?} {b_row:?}");
                        };
                        check(a.t(), Some(a_row), b, Some(b_row));
                        // One of them packed in any case.
                        let (along, across) =
                            (MatRef::new(&a_packed, m, k, k), MatRef::new(&b_packed, n, k, k).t());
                        check(along, None, b, Some(b_row));
                        check(a.t(), Some(a_row), across, None);
                    }
                }
            }
        }
    });
}

/// Past the caches or through them, at lines or between them, whole tiles and edges: the same bits,
/// and nothing beside the result.
#[test]
fn streamed_results_have_the_same_bits() {
    const LINE: usize = 16;
    each_dtype(|kernels| {
        let mut rng = Rng::new(16);
        for (m, n, k) in
            [(12, 32, 7), (13, 48, 256), (33, 64, 40), (5, 100, 300), (40, 16, 1), (64, 95, 255)]
        {
            let (at, b) = (Grid::random(&mut rng, k, m), Grid::random(&mut rng, k, n));
            let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
            let mut want = vec![0.0; m * n];
            let out = MatMut::new(&mut want, m, n, n);
            kernels.gemm_unpacked(at.view().t(), b.view(), out, Write::Overwrite, &mut scratch);
            for (off, between) in [(0, 0), (0, LINE), (8, 0), (0, 8), (1, 3)] {
                const UNTOUCHED: f32 = -77.25;
                let row = n.next_multiple_of(LINE) + between;
                let mut memory = vec![UNTOUCHED; LINE + off + m * row];
                let first = memory.as_ptr().align_offset(64) + off;
                let out = MatMut::new(&mut memory[first..first + (m - 1) * row + n], m, n, row);
                kernels.gemm_unpacked(at.view().t(), b.view(), out, Write::Stream, &mut scratch);
                for (at, x) in memory.iter().enumerate() {
                    let (i, j) = (at.wrapping_sub(first) / row, at.wrapping_sub(first) % row);
                    let inside = at >= first && i < m && j < n;
                    let want = if inside { want[i * n + j] } else { UNTOUCHED };
                    let what = format!("{kernels:?} {m}x{n}x{k} {off} {between} at {i}, {j}");
                    assert!(x.to_bits() == want.to_bits(), "{what}: {x}, not {want}");
                }
            }
        }
    });
}

#[test]
fn sums_of_columns_beside_a_product_have_the_bits_of_column_sum() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(15);
        for (m, n, k) in [
            (1, 1, 1),
            (0, 5, 4),
            (3, 4, 0),
            (5, 33, 64),
            (12, 130, 256),
            (7, 300, 257),
            (13, 17, 1100),
        ] {
            for accumulate in [false, true] {
                let (at, b) = (Grid::random(&mut rng, k, m), Grid::random(&mut rng, k, n));
                let before = Grid::random(&mut rng, 1, (m + 1) * n);
                let start =
                    |_: usize| (before.slice()[..m * n].to_vec(), before.slice()[m * n..].to_vec());
                let [(mut want_c, mut want), (mut c, _)] = [0, 1].map(start);
                let mut sums = Grid::blank_somewhere(&mut rng, 1, n);
                sums.fill(|_, j| want[j]);
                let mut scratch = vec![0.0; kernels.unpacked_scratch_len(m, n, k).unwrap()];
                let into = |c| MatMut::new(c, m, n, n);
                kernels.gemm_unpacked(
                    at.view().t(),
                    b.view(),
                    into(&mut want_c),
                    accumulate,
                    &mut scratch,
                );
                kernels.column_sum(b.view(), &mut want, accumulate);
                kernels.gemm_unpacked_with_sums(
                    at.view().t(),
                    b.view(),
                    into(&mut c),
                    sums.slice_mut(),
                    accumulate,
                    &mut scratch,
                );
                let what = format!("{kernels:?} {m}x{n}x{k} {accumulate}");
                sums.assert_frame(&what);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(&c) == bits(&want_c), "{what}: product");
                let got: Vec<f32> = (0..n).map(|j| sums.at(0, j)).collect();
                assert!(bits(&got) == bits(&want), "{what}: sums");
            }
        }
    });
}

/// The last tile may have fewer columns and want more: no whole panels.
#[test]
fn scratch_of_tiles_suffices_for_each_of_them() {
    const K: usize = 300;
    each_dtype(|kernels| {
        let f = kernels.footprint();
        let strides = [None, Some(1), Some(250), Some(256), Some(1024)];
        for (a, b) in strides.into_iter().flat_map(|a| strides.map(|b| (a, b))) {
            for (m, n, (rows, cols)) in [
                (50, 700, (32, 256)),
                (300, 96, (256, 256)),
                (1, 1, (256, 96)),
                (256, 257, (256, 64)),
                (40, 31, (12, 30)),
            ] {
                let all = f.lying_tiles_scratch_len((m, a), (n, b), K, (rows, cols)).unwrap();
                let mut most = 0;
                for i in (0..m).step_by(rows) {
                    for j in (0..n).step_by(cols) {
                        let (a, b) = ((rows.min(m - i), a), (cols.min(n - j), b));
                        most = most.max(f.lying_scratch_len(a, b, K).unwrap());
                    }
                }
                assert_eq!(all, most, "{kernels:?} {m}x{n} by {rows}x{cols}, {a:?} {b:?}");
            }
        }
    });
}
