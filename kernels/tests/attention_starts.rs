//! Attention of queries that see keys from a first one on: windows that slide, and documents that
//! lie one behind the other. Against the definition, in parts, and without a trace of what is hidden.
#![allow(clippy::needless_range_loop, reason = "indices read like the formulas")]

mod common;

use cllm_kernels::{Attention, AttentionGrads, AttentionInPlace, Dropout, Kernels};
use common::{Grid, Rng, assert_close, each_dtype, only, operand, reference, scratch, tolerance};
use core::ops::Range;
use reference::Head;

const MASK_ROW: u32 = 77;

/// A head: its inputs, and from where on each query sees.
struct Inputs {
    q: Grid,
    k: Grid,
    v: Grid,
    first: usize,
    dropout: bool,
    starts: Option<Vec<u32>>,
    window: Option<usize>,
}

/// What the undivided calls make of a whole sequence.
struct Whole {
    inputs: Inputs,
    dout: Grid,
    out: Grid,
    lse: Grid,
    dq: Grid,
    dk: Grid,
    dv: Grid,
}

/// First keys of windows of `size` keys, for `n` queries of which the first has key `first`.
fn window(first: usize, n: usize, size: usize) -> Vec<u32> {
    (first..first + n).map(|own| (own + 1).saturating_sub(size) as u32).collect()
}

/// First keys of documents of such lengths, again and again.
fn documents(n: usize, lengths: &[usize]) -> Vec<u32> {
    let mut starts = Vec::new();
    for len in lengths.iter().cycle() {
        let start = starts.len();
        if start == n {
            break;
        }
        starts.resize(n.min(start + len), start as u32);
    }
    starts
}

/// Documents of random lengths around strips, panels and blocks.
fn random_documents(rng: &mut Rng, n: usize) -> Vec<u32> {
    const LENGTHS: [usize; 20] =
        [1, 1, 2, 3, 5, 6, 11, 12, 13, 31, 32, 33, 47, 48, 49, 127, 128, 129, 383, 391];
    let lengths: Vec<usize> = (0..40).map(|_| LENGTHS[rng.below(LENGTHS.len())]).collect();
    documents(n, &lengths)
}

/// Any first keys that do not decrease: they stay, take a step or jump to the query's own key.
fn random_starts(rng: &mut Rng, first: usize, n: usize) -> Vec<u32> {
    let mut start = 0;
    let mut next = |own: usize| {
        start = match rng.below(12) {
            0 => start + rng.below(own - start + 1),
            1..=3 => own.min(start + rng.below(4)),
            4 if rng.below(8) == 0 => own,
            _ => start,
        };
        start as u32
    };
    (first..first + n).map(&mut next).collect()
}

/// Whole sequences: length, head and first keys.
fn sequences(rng: &mut Rng) -> Vec<(usize, usize, Vec<u32>)> {
    let mut all = Vec::new();
    for size in [1, 2, 7, 48, 400] {
        for (n, head) in [(61, 7), (290, 32), (901, 5)] {
            all.push((n, head, window(0, n, size)));
        }
    }
    for n in [1, 2, 13, 49, 130, 386, 640, 900] {
        let head = [3, 8, 20, 33][rng.below(4)];
        all.push((n, head, random_documents(rng, n)));
        all.push((n, head, random_starts(rng, 0, n)));
    }
    for lengths in [&[1][..], &[2], &[47, 49], &[129, 127], &[383, 2], &[385, 384], &[700, 3]] {
        all.push((830, 9, documents(830, lengths)));
    }
    // Wide heads, of several panels.
    all.push((200, 64, documents(200, &[150])));
    all.push((150, 128, window(0, 150, 40)));
    all
}

impl Inputs {
    fn new(rng: &mut Rng, keys: usize, head: usize, first: usize, starts: Vec<u32>) -> Self {
        let [q, k, v] = [starts.len(), keys, keys].map(|rows| Grid::random(rng, rows, head));
        Self { q, k, v, first, dropout: rng.below(3) == 0, starts: Some(starts), window: None }
    }

    fn attention(&self) -> Attention<'_> {
        Attention {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            first: self.first,
            starts: self.starts.as_deref(),
            window: self.window,
            scale: 2.0 / (self.q.cols as f32).sqrt(),
            dropout: self.dropout.then(|| (Dropout::new(0.25, 5, 9, 4).unwrap(), MASK_ROW)),
        }
    }

    fn start(&self, query: usize) -> usize {
        let of_window = (self.first + query + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
        self.starts.as_ref().map_or(0, |starts| starts[query] as usize).max(of_window)
    }

    fn what(&self, kernels: &Kernels) -> String {
        let (queries, head, first) = (self.q.rows, self.q.cols, self.first);
        let dropout = if self.dropout { " with dropout" } else { "" };
        let (starts, window) = (&self.starts, self.window);
        format!(
            "{kernels:?} {queries}x{head} after {first}{dropout}, window {window:?}, starts {starts:?}"
        )
    }

    /// A copy with NaN in every row outside: who reads one, shows it.
    fn seen_by(&self, queries: &Range<usize>, keys: &Range<usize>) -> Self {
        let (q, k, v) = (only(&self.q, queries), only(&self.k, keys), only(&self.v, keys));
        Self { q, k, v, starts: self.starts.clone(), ..*self }
    }

    /// Runs `test` with the reference's description and operands as products take them.
    fn with_head<T>(&self, kernels: &Kernels, test: impl FnOnce(&Head<'_>, [&[f64]; 3]) -> T) -> T {
        let keys = self.k.rows;
        let a = self.attention();
        let mut masks = vec![1.0_f32; self.q.rows * keys];
        if let Some((dropout, row)) = a.dropout {
            for (i, masks) in masks.chunks_exact_mut(keys).enumerate() {
                dropout.fill_mask(row + i as u32, 0, masks);
            }
        }
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|grid| operands(kernels, grid));
        let head = Head {
            queries: self.q.rows,
            keys,
            head: self.q.cols,
            first: self.first,
            start: &|i| self.start(i),
            scale: f64::from(a.scale),
            mask: &|i, j| f64::from(masks[i * keys + j]),
        };
        test(&head, [&q, &k, &v])
    }

    /// The result and the log-sum-exp of some of the queries.
    fn forward(&self, kernels: &Kernels, queries: Range<usize>, rng: &mut Rng) -> (Grid, Grid) {
        let head = self.q.cols;
        let mut out = Grid::blank_somewhere(rng, queries.len(), head);
        let mut lse = Grid::blank(1, queries.len(), 0, 1 + rng.below(7));
        let mut room = scratch(rng, kernels.attention_scratch_len(self.k.rows, head));
        let (sums, room_of) = (Some(lse.slice_mut()), room.slice_mut());
        kernels.attention_queries(&self.attention(), queries, out.view_mut(), sums, room_of);
        for grid in [&out, &lse, &room] {
            grid.assert_frame(self.what(kernels));
        }
        (out, lse)
    }

    /// [`Inputs::forward`] of all queries, checked in full.
    fn checked(&self, kernels: &Kernels, rng: &mut Rng) -> (Grid, Grid) {
        let (out, lse) = self.forward(kernels, 0..self.q.rows, rng);
        let (keys, head, what) = (self.k.rows, self.q.cols, self.what(kernels));
        self.with_head(kernels, |h, [q, k, v]| {
            let exact = reference::attention(h, q, k, v);
            let bound = |size| tolerance::attention(keys, head, exact.largest, size);
            let rounded = |size| bound(size) + tolerance::probabilities(kernels.dtype(), size);
            for i in 0..self.q.rows {
                let sum = exact.lse[i];
                assert_close(lse.at(0, i), sum, bound(1.0 + sum.abs()), &what);
                for c in 0..head {
                    let size: f64 = (self.start(i)..=self.first + i)
                        .map(|j| exact.p[i * keys + j] * (h.mask)(i, j) * v[j * head + c].abs())
                        .sum();
                    let y = exact.out[i * head + c];
                    assert_close(out.at(i, c), y, rounded(size), format_args!("{what} {i} {c}"));
                }
            }
        });
        (out, lse)
    }
}

/// What products take the elements for.
fn operands(kernels: &Kernels, grid: &Grid) -> Vec<f64> {
    grid.values().into_iter().map(|x| operand(kernels.dtype(), x)).collect()
}

/// That a part has the rows `rows` of the whole to the bit; of zeros the sign may differ.
#[track_caller]
fn assert_rows(part: &Grid, whole: &Grid, rows: &Range<usize>, what: &str) {
    part.assert_frame(what);
    for (r, i) in rows.clone().enumerate() {
        for c in 0..whole.cols {
            let (x, y) = (part.at(r, c), whole.at(i, c));
            let same = x.to_bits() == y.to_bits() || x == 0.0 && y == 0.0;
            assert!(same, "{what}, {rows:?}: {x} for {y} at ({i}, {c})");
        }
    }
}

impl Whole {
    /// Checked against the formulas if `check`.
    fn new(kernels: &Kernels, inputs: Inputs, dout: Grid, check: bool, rng: &mut Rng) -> Self {
        let (n, head, what) = (inputs.q.rows, inputs.q.cols, inputs.what(kernels));
        let (out, lse) =
            if check { inputs.checked(kernels, rng) } else { inputs.forward(kernels, 0..n, rng) };
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| Grid::blank_somewhere(rng, n, head));
        let mut room = scratch(rng, kernels.attention_backward_scratch_len(n, head));
        let mut grads = AttentionGrads { dq: dq.view_mut(), dk: dk.view_mut(), dv: dv.view_mut() };
        let (a, room_of) = (inputs.attention(), room.slice_mut());
        let (o, l, d) = (out.view(), lse.slice(), dout.view());
        kernels.attention_backward(&a, o, l, d, &mut grads, room_of);
        for grid in [&dq, &dk, &dv, &room] {
            grid.assert_frame(&what);
        }
        let whole = Self { inputs, dout, out, lse, dq, dk, dv };
        if check {
            whole.check(kernels, &what);
        }
        whole
    }

    fn random(kernels: &Kernels, n: usize, head: usize, starts: Vec<u32>, rng: &mut Rng) -> Self {
        let inputs = Inputs::new(rng, n, head, 0, starts);
        let dout = Grid::random(rng, n, head);
        Self::new(kernels, inputs, dout, true, rng)
    }

    fn check(&self, kernels: &Kernels, what: &str) {
        let (n, head) = (self.inputs.q.rows, self.inputs.q.cols);
        let weights = operands(kernels, &self.dout);
        self.inputs.with_head(kernels, |h, [q, k, v]| {
            let exact = reference::attention_backward(h, q, k, v, &weights);
            let largest = reference::attention(h, q, k, v).largest;
            for (name, grid, (values, sizes)) in [
                ("dq", &self.dq, &exact.dq),
                ("dk", &self.dk, &exact.dk),
                ("dv", &self.dv, &exact.dv),
            ] {
                for e in 0..n * head {
                    let (i, c, size) = (e / head, e % head, sizes[e]);
                    let bound = tolerance::attention(n, head, largest, size)
                        + tolerance::attention_gradients(kernels.dtype(), size);
                    let at = format_args!("{what} {name} {i} {c}");
                    assert_close(grid.at(i, c), values[e], bound, at);
                }
            }
        });
    }

    /// Gradients in the place of what they are of.
    fn check_in_place(&self, kernels: &Kernels, rng: &mut Rng) {
        let what = self.inputs.what(kernels);
        let (n, head) = (self.inputs.q.rows, self.inputs.q.cols);
        let mut grids = [&self.inputs.q, &self.inputs.k, &self.inputs.v].map(|input| {
            let mut copy = Grid::blank_somewhere(rng, n, head);
            copy.fill(|i, j| input.at(i, j));
            copy
        });
        let [q, k, v] = grids.each_mut().map(Grid::view_mut);
        let Attention { starts, window, scale, dropout, .. } = self.inputs.attention();
        let mut place = AttentionInPlace { q, k, v, starts, window, scale, dropout };
        let mut room = scratch(rng, kernels.attention_backward_scratch_len(n, head));
        let (o, l, d) = (self.out.view(), self.lse.slice(), self.dout.view());
        kernels.attention_backward_in_place(&mut place, o, l, d, room.slice_mut());
        for (place, grad) in grids.iter().zip([&self.dq, &self.dk, &self.dv]) {
            place.assert_frame(&what);
            assert_eq!(place.bits(), grad.bits(), "{what}: in place");
        }
    }

    /// What the backward pass reads, with NaN in every row but those.
    fn seen_by(&self, queries: &Range<usize>, keys: &Range<usize>) -> (Inputs, Grid, Grid, Grid) {
        let mut lse = Grid::blank(1, self.lse.cols, 0, 1);
        lse.fill(|_, i| if queries.contains(&i) { self.lse.at(0, i) } else { f32::NAN });
        let inputs = self.inputs.seen_by(queries, keys);
        (inputs, only(&self.out, queries), only(&self.dout, queries), lse)
    }

    fn check_queries(&self, kernels: &Kernels, rows: &Range<usize>, rng: &mut Rng) {
        let (keys, head, what) =
            (self.inputs.k.rows, self.inputs.q.cols, self.inputs.what(kernels));
        let start = self.inputs.start(rows.start);
        let (out, lse) = self.inputs.seen_by(rows, &(start / 32 * 32..rows.end)).forward(
            kernels,
            rows.clone(),
            rng,
        );
        assert_rows(&out, &self.out, rows, &what);
        assert_eq!(lse.bits(), self.lse.bits()[rows.clone()], "{what}, {rows:?}: lse");

        let (inputs, out, dout, lse) = self.seen_by(rows, &(start / 384 * 384..rows.end));
        let mut dq = Grid::blank_somewhere(rng, rows.len(), head);
        let mut room = scratch(rng, kernels.attention_backward_queries_scratch_len(keys, head));
        let (a, o, l, d) = (inputs.attention(), out.view(), lse.slice(), dout.view());
        let room_of = room.slice_mut();
        kernels.attention_backward_queries(&a, rows.clone(), o, l, d, dq.view_mut(), room_of);
        room.assert_frame(&what);
        assert_rows(&dq, &self.dq, rows, &what);
    }

    fn check_keys(&self, kernels: &Kernels, rows: &Range<usize>, rng: &mut Rng) {
        let (n, head, what) = (self.inputs.k.rows, self.inputs.q.cols, self.inputs.what(kernels));
        let block = kernels.attention_block();
        let seeing = (0..n).filter(|i| self.inputs.start(*i) < rows.end).count();
        let seeing = seeing.next_multiple_of(block);
        let (inputs, out, dout, lse) = self.seen_by(&(rows.start / block * block..seeing), rows);
        let [mut dk, mut dv] = [0; 2].map(|_| Grid::blank_somewhere(rng, rows.len(), head));
        let need = kernels.attention_backward_keys_scratch_len(n, rows.len(), head);
        let mut room = scratch(rng, need);
        let (a, o, l, d) = (inputs.attention(), out.view(), lse.slice(), dout.view());
        let (to_k, to_v, room_of) = (dk.view_mut(), dv.view_mut(), room.slice_mut());
        kernels.attention_backward_keys(&a, rows.clone(), o, l, d, to_k, to_v, room_of);
        room.assert_frame(&what);
        assert_rows(&dk, &self.dk, rows, &what);
        assert_rows(&dv, &self.dv, rows, &what);
    }

    /// Parts of queries and of keys at multiples of the block, and any keys.
    fn check_parts(&self, kernels: &Kernels, rng: &mut Rng) {
        let (n, block) = (self.inputs.q.rows, kernels.attention_block());
        let mut start = 0;
        while start < n {
            let end = n.min(start + block * (1 + rng.below(3) * rng.below(6)));
            self.check_queries(kernels, &(start..end), rng);
            self.check_keys(kernels, &(start..end), rng);
            start = end;
        }
        for _ in 0..6 {
            let start = rng.below(n);
            self.check_keys(kernels, &(start..start + rng.below(n - start + 1)), rng);
        }
    }

    fn results(&self) -> [&Grid; 5] {
        [&self.out, &self.lse, &self.dq, &self.dk, &self.dv]
    }
}

#[test]
fn both_passes_match_the_definition_and_parts_have_the_bits_of_the_whole() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(71);
        for (n, head, starts) in sequences(&mut rng) {
            let whole = Whole::random(kernels, n, head, starts, &mut rng);
            whole.check_in_place(kernels, &mut rng);
            whole.check_parts(kernels, &mut rng);
        }
    });
}

/// Few queries, as in generation, and many, behind a cache; keys that are not seen are stale.
#[test]
fn a_window_over_a_cache_matches_the_definition() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(72);
        for first in [0, 1, 7, 31, 64, 100, 383, 500, 801] {
            for queries in [1, 2, 3, 5, 9, 50] {
                for size in [1, 2, 7, 48, 400] {
                    let head = rng.size(65);
                    let starts = if rng.below(4) == 0 {
                        random_starts(&mut rng, first, queries)
                    } else {
                        window(first, queries, size)
                    };
                    let seen = first + queries;
                    let inputs = Inputs::new(&mut rng, seen + 3, head, first, starts);
                    let least = inputs.start(0) / 32 * 32;
                    let stale = inputs.seen_by(&(0..queries), &(least..seen));
                    let (out, lse) = stale.forward(kernels, 0..queries, &mut rng);
                    let (whole, sums) = inputs.checked(kernels, &mut rng);
                    assert_eq!(out.bits(), whole.bits(), "{}", inputs.what(kernels));
                    assert_eq!(lse.bits(), sums.bits(), "{}", inputs.what(kernels));
                }
            }
        }
    });
}

#[test]
fn first_keys_of_zero_change_no_bit() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(73);
        for (n, head) in [(1, 3), (3, 8), (49, 32), (130, 7), (400, 20), (801, 5)] {
            let inputs = Inputs::new(&mut rng, n, head, 0, vec![0; n]);
            let mut plain = inputs.seen_by(&(0..n), &(0..n));
            plain.starts = None;
            let dout = Grid::random(&mut rng, n, head);
            let same = only(&dout, &(0..n));
            let with = Whole::new(kernels, inputs, dout, false, &mut rng);
            let without = Whole::new(kernels, plain, same, false, &mut rng);
            let what = with.inputs.what(kernels);
            for (x, y) in with.results().into_iter().zip(without.results()) {
                assert_eq!(x.bits(), y.bits(), "{what}");
            }
            // Parts of the one are parts of the other.
            let mut mixed = with;
            mixed.inputs.starts = None;
            mixed.check_parts(kernels, &mut rng);
        }
        for (first, queries) in [(0, 1), (70, 2), (500, 1), (500, 40)] {
            let keys = first + queries;
            let mut inputs = Inputs::new(&mut rng, keys, 16, first, vec![0; queries]);
            let (with, _) = inputs.forward(kernels, 0..queries, &mut rng);
            inputs.starts = None;
            let (without, _) = inputs.forward(kernels, 0..queries, &mut rng);
            assert_eq!(with.bits(), without.bits(), "{}", inputs.what(kernels));
        }
    });
}

/// A window is as many first keys, of all of the keys or of those of a document; one that holds all
/// keys is none.
#[test]
fn windows_have_the_bits_of_their_first_keys() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(75);
        for (n, size) in [(61, 1), (200, 33), (530, 48), (850, 390), (70, 70), (70, 1_000)] {
            for lengths in [&[2_000][..], &[129, 127], &[40, 391, 3]] {
                let documents = documents(n, lengths);
                let both: Vec<u32> = documents
                    .iter()
                    .copied()
                    .zip(window(0, n, size))
                    .map(|(a, b)| a.max(b))
                    .collect();
                let inputs = Inputs::new(&mut rng, n, 16, 0, both);
                let starts = (lengths[0] < n).then_some(documents);
                let windowed = Inputs {
                    q: inputs.q.clone(),
                    k: inputs.k.clone(),
                    v: inputs.v.clone(),
                    starts,
                    window: Some(size),
                    ..inputs
                };
                let dout = Grid::random(&mut rng, n, 16);
                let same = dout.clone();
                let with = Whole::new(kernels, windowed, dout, false, &mut rng);
                let without = Whole::new(kernels, inputs, same, false, &mut rng);
                let what = with.inputs.what(kernels);
                for (x, y) in with.results().into_iter().zip(without.results()) {
                    assert_eq!(x.bits(), y.bits(), "{what}");
                }
                with.check_parts(kernels, &mut rng);
            }
        }
        for (first, queries, size) in [(0, 1, 1), (70, 2, 9), (500, 1, 100), (500, 40, 33)] {
            let starts = window(first, queries, size);
            let mut inputs = Inputs::new(&mut rng, first + queries, 16, first, starts);
            let (without, _) = inputs.forward(kernels, 0..queries, &mut rng);
            (inputs.starts, inputs.window) = (None, Some(size));
            let (with, _) = inputs.forward(kernels, 0..queries, &mut rng);
            assert_eq!(with.bits(), without.bits(), "{}", inputs.what(kernels));
        }
    });
}

/// What lies in one document changes no bit of another's results.
#[test]
fn documents_do_not_see_one_another() {
    each_dtype(|kernels| {
        let mut rng = Rng::new(74);
        for (n, cuts) in [(60, [17, 35]), (200, [31, 97]), (850, [380, 390]), (850, [50, 800])] {
            let starts: Vec<u32> = (0..n)
                .map(|i| cuts.into_iter().filter(|cut| *cut <= i).max().unwrap_or(0) as u32)
                .collect();
            let inputs = Inputs::new(&mut rng, n, 12, 0, starts);
            let dout = Grid::random(&mut rng, n, 12);
            for document in [0..cuts[0], cuts[0]..cuts[1], cuts[1]..n] {
                let mut runs = [0.5, -300.0].map(|factor| {
                    let changed = |grid: &Grid| {
                        let mut copy = Grid::blank(n, 12, 0, 3);
                        copy.fill(|i, j| {
                            let factor = if document.contains(&i) { 1.0 } else { factor };
                            grid.at(i, j) * factor
                        });
                        copy
                    };
                    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(changed);
                    let inputs = Inputs { q, k, v, starts: inputs.starts.clone(), ..inputs };
                    Whole::new(kernels, inputs, changed(&dout), false, &mut rng)
                });
                let [one, other] = &mut runs;
                let what = format!("{} {document:?}", one.inputs.what(kernels));
                for (x, y) in one.results().into_iter().zip(other.results()) {
                    let some = if x.rows == 1 {
                        document.clone()
                    } else {
                        document.start * 12..document.end * 12
                    };
                    let same =
                        |x: &f32, y: &f32| x.to_bits() == y.to_bits() || *x == 0.0 && *y == 0.0;
                    let [x, y] = [x, y].map(|grid| grid.values()[some.clone()].to_vec());
                    assert!(x.iter().zip(&y).all(|(x, y)| same(x, y)), "{what}");
                }
            }
        }
    });
}
