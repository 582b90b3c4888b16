//! A head in parts: the same bits as the undivided call, from no more than a part reads.

mod common;

use cllm_kernels::{Attention, AttentionGrads, Dropout, Kernels};
use common::{Grid, Rng, each_dtype, only, panics, scratch};
use core::ops::Range;

#[derive(Clone, Copy, Debug)]
struct Shape {
    queries: usize,
    keys: usize,
    head: usize,
    first: usize,
    dropout: bool,
}

/// Whole sequences on both sides of registers, blocks of queries and depth blocks.
fn sequences() -> impl Iterator<Item = Shape> {
    let heads = [7, 32, 64].into_iter().flat_map(|head| [(head, false), (head, true)]);
    heads.flat_map(|(head, dropout)| {
        let shape = move |n| Shape { queries: n, keys: n, head, first: 0, dropout };
        [1, 13, 26, 70, 128, 300, 512].map(shape)
    })
}

struct Inputs {
    shape: Shape,
    q: Grid,
    k: Grid,
    v: Grid,
}

impl Inputs {
    fn new(rng: &mut Rng, shape: Shape) -> Self {
        let [queries, keys] = [shape.queries, shape.keys];
        let mut part = |rows| Grid::random(rng, rows, shape.head);
        Self { shape, q: part(queries), k: part(keys), v: part(keys) }
    }

    fn attention(&self) -> Attention<'_> {
        Attention {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            first: self.shape.first,
            starts: None,
            window: None,
            scale: 2.0 / (self.shape.head as f32).sqrt(),
            dropout: self.shape.dropout.then(|| (Dropout::new(0.25, 5, 9, 4).unwrap(), 77)),
        }
    }

    /// The same with NaN in every row outside: who reads one, shows it.
    fn seen_by(&self, queries: &Range<usize>, keys: &Range<usize>) -> Self {
        let part = |grid: &Grid, rows: &Range<usize>| only(grid, rows);
        let (q, k, v) = (part(&self.q, queries), part(&self.k, keys), part(&self.v, keys));
        Self { shape: self.shape, q, k, v }
    }
}

/// Partitions of `n` rows: all in one, one cut anywhere, as small as can be, at random.
/// Cuts are at multiples of `unit`.
fn partitions(rng: &mut Rng, n: usize, unit: usize) -> Vec<Vec<Range<usize>>> {
    let places: Vec<usize> = (0..n.div_ceil(unit)).map(|block| block * unit).skip(1).collect();
    let mut cuts = vec![Vec::new(), places.clone()];
    cuts.extend(places.iter().map(|cut| vec![*cut]));
    for share in [2, 4] {
        cuts.push(places.iter().copied().filter(|_| rng.below(share) == 0).collect());
    }
    let parts = |cuts: Vec<usize>| {
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([n]);
        starts.zip(ends).map(|(start, end)| start..end).collect()
    };
    cuts.into_iter().map(parts).collect()
}

/// The whole head: result and log-sum-exp.
fn forward(kernels: &Kernels, inputs: &Inputs, rng: &mut Rng) -> (Grid, Grid) {
    let shape = inputs.shape;
    let mut out = Grid::blank_somewhere(rng, shape.queries, shape.head);
    let mut lse = Grid::blank(1, shape.queries, 0, 1 + rng.below(7));
    let mut room = scratch(rng, kernels.attention_scratch_len(shape.keys, shape.head));
    let sums = Some(lse.slice_mut());
    kernels.attention(&inputs.attention(), out.view_mut(), sums, room.slice_mut());
    (out, lse)
}

#[track_caller]
fn assert_rows(part: &Grid, whole: &Grid, rows: &Range<usize>, what: &str) {
    part.assert_frame(what);
    assert_eq!(part.rows, rows.len());
    for (r, i) in rows.clone().enumerate() {
        for c in 0..whole.cols {
            let (x, y) = (part.at(r, c), whole.at(i, c));
            assert_eq!(x.to_bits(), y.to_bits(), "{what}: {x} for {y} at ({i}, {c})");
        }
    }
}

fn check_forward(kernels: &Kernels, shape: Shape, rng: &mut Rng) {
    let inputs = Inputs::new(rng, shape);
    let (whole, sums) = forward(kernels, &inputs, rng);
    for parts in partitions(rng, shape.queries, kernels.attention_block()) {
        for rows in parts {
            let what = format!("{kernels:?} {shape:?} {rows:?}");
            let seen = inputs.seen_by(&rows, &(0..shape.first + rows.end));
            let mut out = Grid::blank_somewhere(rng, rows.len(), shape.head);
            let mut lse = Grid::blank(1, rows.len(), 0, 1 + rng.below(7));
            let mut room = scratch(rng, kernels.attention_scratch_len(shape.keys, shape.head));
            kernels.attention_queries(
                &seen.attention(),
                rows.clone(),
                out.view_mut(),
                Some(lse.slice_mut()),
                room.slice_mut(),
            );
            room.assert_frame(&what);
            lse.assert_frame(&what);
            assert_rows(&out, &whole, &rows, &what);
            let part = &sums.bits()[rows.clone()];
            assert_eq!(lse.bits(), part, "{what}: lse");
        }
    }
}

#[test]
fn queries_in_parts_have_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(51);
        for shape in sequences() {
            check_forward(kernels, shape, &mut rng);
        }
    });
}

#[test]
fn queries_in_parts_against_a_cache_have_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(52);
        // The last two have rows of scores that are longer than a head is wide by far.
        for (first, queries, spare) in
            [(0, 3, 0), (10, 3, 2), (7, 49, 0), (256, 70, 5), (2700, 40, 0), (5300, 30, 1)]
        {
            let keys = first + queries + spare;
            for dropout in [false, true] {
                let shape = Shape { queries, keys, head: 5, first, dropout };
                check_forward(kernels, shape, &mut rng);
            }
        }
    });
}

/// Whole-head inputs of the backward pass, and what the undivided call makes of them.
struct Backward {
    inputs: Inputs,
    out: Grid,
    lse: Grid,
    dout: Grid,
    dq: Grid,
    dk: Grid,
    dv: Grid,
}

impl Backward {
    fn new(kernels: &Kernels, shape: Shape, rng: &mut Rng) -> Self {
        let (n, head) = (shape.keys, shape.head);
        let inputs = Inputs::new(rng, shape);
        let (out, lse) = forward(kernels, &inputs, rng);
        let dout = Grid::random(rng, n, head);
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| Grid::blank_somewhere(rng, n, head));
        let mut room = scratch(rng, kernels.attention_backward_scratch_len(n, head));
        let mut grads = AttentionGrads { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
        kernels.attention_backward(
            &inputs.attention(),
            out.view(),
            lse.slice(),
            dout.view(),
            &mut grads,
            room.slice_mut(),
        );
        Self { inputs, out, lse, dout, dq, dk, dv }
    }

    /// The inputs with NaN in every row but those of `queries` and `keys`.
    fn seen_by(&self, queries: Range<usize>, keys: Range<usize>) -> (Inputs, Grid, Grid, Vec<f32>) {
        let mut lse = self.lse.values();
        for (i, x) in lse.iter_mut().enumerate() {
            *x = if queries.contains(&i) { *x } else { f32::NAN };
        }
        let inputs = self.inputs.seen_by(&queries, &keys);
        (inputs, only(&self.out, &queries), only(&self.dout, &queries), lse)
    }

    fn check_queries(&self, kernels: &Kernels, rows: &Range<usize>, rng: &mut Rng) {
        let Shape { keys, head, .. } = self.inputs.shape;
        let what = format!("{kernels:?} {:?} queries {rows:?}", self.inputs.shape);
        let (inputs, out, dout, lse) = self.seen_by(rows.clone(), 0..rows.end);
        let mut dq = Grid::blank_somewhere(rng, rows.len(), head);
        let need = kernels.attention_backward_queries_scratch_len(keys, head);
        assert!(need <= kernels.attention_backward_scratch_len(keys, head));
        let mut room = scratch(rng, need);
        kernels.attention_backward_queries(
            &inputs.attention(),
            rows.clone(),
            out.view(),
            &lse,
            dout.view(),
            dq.view_mut(),
            room.slice_mut(),
        );
        room.assert_frame(&what);
        assert_rows(&dq, &self.dq, rows, &what);
    }

    fn check_keys(&self, kernels: &Kernels, rows: &Range<usize>, rng: &mut Rng) {
        let Shape { keys, head, .. } = self.inputs.shape;
        let what = format!("{kernels:?} {:?} keys {rows:?}", self.inputs.shape);
        let block = kernels.attention_block();
        let (inputs, out, dout, lse) = self.seen_by(rows.start / block * block..keys, rows.clone());
        let [mut dk, mut dv] = [0; 2].map(|_| Grid::blank_somewhere(rng, rows.len(), head));
        let need = kernels.attention_backward_keys_scratch_len(keys, rows.len(), head);
        assert!(need <= kernels.attention_backward_scratch_len(keys, head));
        let mut room = scratch(rng, need);
        kernels.attention_backward_keys(
            &inputs.attention(),
            rows.clone(),
            out.view(),
            &lse,
            dout.view(),
            dk.view_mut(),
            dv.view_mut(),
            room.slice_mut(),
        );
        room.assert_frame(&what);
        assert_rows(&dk, &self.dk, rows, &what);
        assert_rows(&dv, &self.dv, rows, &what);
    }
}

#[test]
fn gradients_in_parts_have_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(54);
        let long = Shape { queries: 2800, keys: 2800, head: 3, first: 0, dropout: false };
        for shape in sequences().chain([long]) {
            let whole = Backward::new(kernels, shape, &mut rng);
            let (n, block) = (shape.keys, kernels.attention_block());
            let mut parts = partitions(&mut rng, n, block);
            // One cut in each place is quadratic in time: some places will do.
            parts.retain(|parts| parts.len() != 2 || rng.below(n.div_ceil(block)) < 3);
            if shape.keys == long.keys {
                parts.truncate(1);
                parts.push(vec![0..block * 70, block * 70..n]);
            }
            for rows in parts.into_iter().flatten() {
                whole.check_queries(kernels, &rows, &mut rng);
                whole.check_keys(kernels, &rows, &mut rng);
            }
        }
    });
}

/// Keys need no block of their own: every row of dK and dV is summed by itself.
#[test]
fn any_range_of_keys_has_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(55);
        for (n, head) in [(13, 7), (70, 32), (128, 5), (300, 8), (811, 6)] {
            let shape = Shape { queries: n, keys: n, head, first: 0, dropout: rng.coin() };
            let whole = Backward::new(kernels, shape, &mut rng);
            for _ in 0..20 {
                let start = rng.below(n);
                let keys = start..start + rng.below(n - start + 1);
                whole.check_keys(kernels, &keys, &mut rng);
            }
        }
    });
}

#[test]
fn a_part_is_made_of_whole_blocks() {
    each_dtype(|kernels| {
        let shape = Shape { queries: 70, keys: 70, head: 3, first: 0, dropout: false };
        let inputs = Inputs::new(&mut Rng::new(53), shape);
        let block = kernels.attention_block();
        assert!(block > 1 && 2 * block < 70, "{block}");
        let run = |queries: Range<usize>, rows: usize, sums: usize| {
            let mut room = vec![0.0; kernels.attention_scratch_len(70, 3).unwrap()];
            let (mut out, mut lse) = (Grid::blank(rows, 3, 0, 0), vec![0.0; sums]);
            let lse = Some(lse.as_mut_slice());
            kernels.attention_queries(&inputs.attention(), queries, out.view_mut(), lse, &mut room);
            out.assert_frame("a part");
        };
        for queries in [0..0, 0..block, block..70, block..block, 70..70, 0..70] {
            run(queries.clone(), queries.len(), queries.len());
            assert!(panics(|| run(queries.clone(), queries.len() + 1, queries.len())));
            assert!(panics(|| run(queries.clone(), queries.len(), queries.len() + 1)));
        }
        for (start, end) in [(1, 70), (0, 69), (0, 71), (block, 2 * block - 1), (block, 0)] {
            let len = end - start.min(end);
            assert!(panics(|| run(start..end, len, len)), "accepted {start}..{end}");
        }
    });
}

#[test]
fn gradients_in_parts_check_their_shapes() {
    each_dtype(|kernels| {
        let (n, head) = (50, 3);
        let shape = Shape { queries: n, keys: n, head, first: 0, dropout: false };
        let whole = Backward::new(kernels, shape, &mut Rng::new(56));
        let block = kernels.attention_block();
        let queries = |part: Range<usize>, rows: usize, cols: usize, lse: usize, short: usize| {
            let need = kernels.attention_backward_queries_scratch_len(n, head).unwrap();
            let (mut dq, mut room) = (Grid::blank(rows, cols, 0, 0), vec![0.0; need - short]);
            let (a, lse) = (whole.inputs.attention(), &whole.lse.slice()[..lse]);
            let (o, d) = (whole.out.view(), whole.dout.view());
            kernels.attention_backward_queries(&a, part, o, lse, d, dq.view_mut(), &mut room);
        };
        for part in [0..0, 0..block, block..n, n..n, 0..n] {
            queries(part.clone(), part.len(), head, n, 0);
            assert!(panics(|| queries(part.clone(), part.len() + 1, head, n, 0)));
            assert!(panics(|| queries(part.clone(), part.len(), head + 1, n, 0)));
            assert!(panics(|| queries(part.clone(), part.len(), head, n - 1, 0)));
            assert!(panics(|| queries(part.clone(), part.len(), head, n, 1)));
        }
        for (start, end) in [(1, n), (0, n - 1), (0, n + 1), (block, 0)] {
            let len = end - start.min(end);
            assert!(panics(|| queries(start..end, len, head, n, 0)), "accepted {start}..{end}");
        }
        let keys = |part: Range<usize>, rows: [usize; 2], cols: usize, lse: usize, short: usize| {
            let need = kernels.attention_backward_keys_scratch_len(n, part.len(), head).unwrap();
            let [mut dk, mut dv] = rows.map(|rows| Grid::blank(rows, cols, 0, 0));
            let (dk, dv, mut room) = (dk.view_mut(), dv.view_mut(), vec![0.0; need - short]);
            let (a, lse) = (whole.inputs.attention(), &whole.lse.slice()[..lse]);
            let (o, d) = (whole.out.view(), whole.dout.view());
            kernels.attention_backward_keys(&a, part, o, lse, d, dk, dv, &mut room);
        };
        for part in [3..3, 0..1, 7..n, n..n, 0..n] {
            let len = part.len();
            keys(part.clone(), [len, len], head, n, 0);
            assert!(panics(|| keys(part.clone(), [len + 1, len], head, n, 0)));
            assert!(panics(|| keys(part.clone(), [len, len + 1], head, n, 0)));
            assert!(panics(|| keys(part.clone(), [len, len], head + 1, n, 0)));
            assert!(panics(|| keys(part.clone(), [len, len], head, n - 1, 0)));
            if len > 0 {
                assert!(panics(|| keys(part.clone(), [len, len], head, n, 1)));
            }
        }
        for (start, end) in [(0, n + 1), (5, 4)] {
            let len = end - start.min(end);
            assert!(panics(|| keys(start..end, [len, len], head, n, 0)), "accepted {start}..{end}");
        }
    });
}
