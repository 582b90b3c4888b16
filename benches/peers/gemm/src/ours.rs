//! Crystalline's products, called as a training step calls them.
//!
//! The kernels leave threads and blocks of rows to their caller, so this does what the step
//! does: blocks of 96 rows with a packed matrix, gradients of weights by tiles of 256 x 256
//! (a step has up to 512 where level 2 is 2 MiB or more). Two
//! threads get a half each. Where a step keeps in memory as bf16 what only products read, operands that
//! are not packed lie so; they are brought there before the timing, as PyTorch's are. Results that a step keeps as bf16
//! ([`Product::is_kept`](crate::shapes::Product)) are, as PyTorch's all are; others are of `f32`.

use crate::aligned::{Aligned, Role};
use crate::place::Places;
use crate::problem::Problem;
use crate::shapes::Layout;
use crate::timing::{Calls, Sampler, together};
use cllm_kernels::{Bf16, Epilogue, Isa, Kernels, MatMut, MatRef, Operand, OperandMut, Packed};
use core::hint::black_box;
use core::ops::Range;
use core::time::Duration;

/// Rows of a block, as in `core/src/plan/grain.rs`.
const ROW_BLOCK: usize = 96;
/// Rows and columns of a tile of a weight's gradient: what `core/src/plan/blocking.rs` takes from 512 KiB
/// of level 2 on, below 2 MiB. Other sizes made 0.98 to 1.03 of a step.
const WEIGHT_TILE: usize = 256;
/// Products smaller than this are left to one thread: some 2 us.
const WORTH_SHARING: u64 = 1 << 18;
/// Halves are cut at a multiple of it: of rows of register blocks, which are 4, 6 or 12, and with AMX 32.
const ROW_CUT: usize = 12;
const ROW_CUT_OF_TILES: usize = 32;
/// Likewise of columns, of panels.
const COLUMN_CUT: usize = 32;

/// When B is brought into panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Once, before the timing, as a step packs a weight for all its tokens.
    Before,
    /// In every call, as for a matrix that is used once.
    Within,
}

/// Rows and columns of C.
#[derive(Clone, Debug)]
struct Tile {
    rows: Range<usize>,
    cols: Range<usize>,
}

/// What one thread does.
struct Share<'a> {
    tiles: Vec<(Tile, OperandMut<'a>)>,
    /// Columns of B that it packs for itself.
    packs: Range<usize>,
    packed: Aligned,
    scratch: Aligned,
}

/// One of Crystalline's products.
pub struct Ours<'a> {
    kernels: &'static Kernels,
    problem: &'a Problem,
    packing: Packing,
    packed: Aligned,
    /// A, and B if it is not packed, as bf16 where the kernels keep that.
    halves: [Option<Aligned>; 2],
    /// C, if the kernels keep it as bf16.
    kept: Option<Aligned>,
    parts: Vec<Tile>,
    places: Option<Places>,
}

impl<'a> Ours<'a> {
    /// Prepares a product, on two threads if there are places for them.
    ///
    /// # Panics
    /// If the sizes overflow.
    #[must_use]
    pub fn new(
        kernels: &'static Kernels,
        problem: &'a Problem,
        packing: Packing,
        places: Option<Places>,
    ) -> Self {
        let (k, n) = (problem.product.k, problem.product.n);
        let mut packed = Aligned::zeros(Role::B, 0);
        if packing == Packing::Before && !problem.product.is_weight_gradient() {
            packed = Aligned::zeros(Role::B, kernels.packed_len(k, n).unwrap());
            kernels.pack(right(problem), &mut packed);
        }
        let product = &problem.product;
        let gradient = product.is_weight_gradient();
        let of_a = || halves(kernels, Role::A, &problem.a, if gradient { product.m } else { k });
        let a = kernels.keeps_halves().then(of_a);
        let of_b = || halves(kernels, Role::B, &problem.b, n);
        let b = (kernels.keeps_halves() && gradient).then(of_b);
        let parts = parts(problem, packing, kernels, places.is_some());
        let keeps = kernels.keeps_halves_of(product.n) && product.is_kept;
        let len = || kernels.operand_len(product.m, product.n).unwrap();
        let kept = keeps.then(|| Aligned::zeros(Role::C, len()));
        Self { kernels, problem, packing, packed, halves: [a, b], kept, parts, places }
    }

    fn share<'c>(&self, tiles: Vec<(Tile, OperandMut<'c>)>, packs: Range<usize>) -> Share<'c> {
        let (kernels, k) = (self.kernels, self.problem.product.k);
        let packed = match self.packing {
            Packing::Within => Aligned::zeros(Role::B, kernels.packed_len(k, packs.len()).unwrap()),
            Packing::Before => Aligned::zeros(Role::B, 0),
        };
        let scratch = if self.problem.product.is_weight_gradient() {
            kernels.unpacked_scratch_len(WEIGHT_TILE, WEIGHT_TILE, k).unwrap()
        } else {
            let halves = kernels.gemm_into_halves_scratch_len(ROW_BLOCK, k);
            kernels.gemm_scratch_len(ROW_BLOCK, k).max(halves)
        };
        Share { tiles, packs, packed, scratch: Aligned::zeros(Role::Scratch, scratch) }
    }

    /// One thread's part of the product.
    fn compute(&self, share: &mut Share<'_>) {
        let (kernels, k) = (self.kernels, self.problem.product.k);
        let product = &self.problem.product;
        let (m, n) = (product.m, product.n);
        let [a, b_kept] = self.halves.each_ref().map(Option::as_ref);
        let a = a.map_or(left(self.problem).into(), |a| kept(kernels, a, product.a, m, k));
        let b = right(self.problem);
        let Share { tiles, packs, packed, scratch } = share;
        if product.is_weight_gradient() {
            let b = b_kept.map_or(b.into(), |b| kept(kernels, b, product.b, k, n));
            for (Tile { rows, cols }, c) in tiles {
                let a = row_range(a, rows);
                let b = row_range(b.t(), cols).t();
                let OperandMut::Float(c) = c else { unreachable!("gradients are of f32") };
                kernels.gemm_unpacked(a, b, c.reborrow(), false, scratch);
            }
            return;
        }
        let packed = match self.packing {
            Packing::Before => {
                let all = Packed::new(&self.packed, k, n);
                kernels.packed_columns(all, packs.clone())
            }
            Packing::Within => {
                kernels.pack(b.col_range(packs.start, packs.len()), packed);
                Packed::new(packed, k, packs.len())
            }
        };
        for (Tile { rows, .. }, c) in tiles {
            let a = row_range(a, rows);
            kernels.gemm(a, packed, reborrow(c), false, Epilogue::None, scratch);
        }
    }
}

impl Sampler for Ours<'_> {
    fn rounds(&self) -> bool {
        self.kept.is_some()
    }

    fn sample(&mut self, c: &mut [f32], calls: Calls) -> Result<Duration, String> {
        let mut kept = self.kept.take();
        let time = self.time(c, kept.as_deref_mut(), calls);
        if let Some(kept) = &kept {
            let (m, n) = (self.problem.product.m, self.problem.product.n);
            if let Operand::Half(kept) = self.kernels.operand(kept, m, n) {
                for (row, to) in c.chunks_exact_mut(n).enumerate() {
                    for (to, from) in to.iter_mut().zip(kept.row(row)) {
                        *to = from.to_f32();
                    }
                }
            }
        }
        self.kept = kept;
        Ok(time)
    }
}

impl Ours<'_> {
    /// The time of some products, into `c` or what is kept of it.
    fn time(&self, c: &mut [f32], kept: Option<&mut [f32]>, calls: Calls) -> Duration {
        let n = self.problem.product.n;
        let cut: Vec<Vec<Tile>> = self.parts.iter().map(|part| tiles(self.problem, part)).collect();
        let mut views = match kept {
            Some(kept) => {
                let stride = self.kernels.operand_stride(n).unwrap();
                let views = views::<Bf16>(kept, (n, stride), cut.iter().flatten());
                views.into_iter().map(OperandMut::Half).collect()
            }
            None => {
                let views = views::<f32>(c, (n, n), cut.iter().flatten());
                views.into_iter().map(OperandMut::Float).collect::<Vec<_>>()
            }
        }
        .into_iter();
        let mut shares: Vec<_> = cut
            .into_iter()
            .zip(&self.parts)
            .map(|(tiles, part)| {
                self.share(tiles.into_iter().zip(&mut views).collect(), part.cols.clone())
            })
            .collect();
        together(&mut shares, calls, self.places, |share| self.compute(share))
    }
}

fn view(data: &[f32], layout: Layout, rows: usize, cols: usize) -> MatRef<'_> {
    match layout {
        Layout::Plain => MatRef::new(black_box(data), rows, cols, cols),
        Layout::Transposed => MatRef::new(black_box(data), cols, rows, rows).t(),
    }
}

fn left(problem: &Problem) -> MatRef<'_> {
    let product = &problem.product;
    view(&problem.a, product.a, product.m, product.k)
}

fn right(problem: &Problem) -> MatRef<'_> {
    let product = &problem.product;
    view(&problem.b, product.b, product.k, product.n)
}

/// Rows of `cols` elements as the kernels keep them.
fn halves(kernels: &Kernels, role: Role, data: &[f32], cols: usize) -> Aligned {
    let rows = data.len() / cols;
    let mut memory = Aligned::zeros(role, kernels.operand_len(rows, cols).unwrap());
    match kernels.operand_mut(&mut memory, rows, cols) {
        OperandMut::Float(mut to) => {
            for (row, from) in data.chunks_exact(cols).enumerate() {
                to.row_mut(row).copy_from_slice(from);
            }
        }
        OperandMut::Half(mut to) => {
            for (row, from) in data.chunks_exact(cols).enumerate() {
                for (to, from) in to.row_mut(row).iter_mut().zip(from) {
                    *to = Bf16::from_f32(*from);
                }
            }
        }
    }
    memory
}

/// What [`halves`] has made, as it stands in the product.
fn kept<'a>(
    kernels: &Kernels,
    memory: &'a [f32],
    layout: Layout,
    rows: usize,
    cols: usize,
) -> Operand<'a> {
    match layout {
        Layout::Plain => kernels.operand(black_box(memory), rows, cols),
        Layout::Transposed => kernels.operand(black_box(memory), cols, rows).t(),
    }
}

fn row_range<'a>(m: Operand<'a>, rows: &Range<usize>) -> Operand<'a> {
    match m {
        Operand::Float(m) => Operand::Float(m.row_range(rows.start, rows.len())),
        Operand::Half(m) => Operand::Half(m.row_range(rows.start, rows.len())),
    }
}

/// What each thread gets: all, or the halves of the rows or of the columns.
fn parts(problem: &Problem, packing: Packing, kernels: &Kernels, shared: bool) -> Vec<Tile> {
    let product = &problem.product;
    let (m, n) = (product.m, product.n);
    if !shared || product.flops() < WORTH_SHARING {
        return vec![Tile { rows: 0..m, cols: 0..n }];
    }
    let by_columns = if product.is_weight_gradient() {
        n >= m
    } else if packing == Packing::Within {
        // Nobody waits for columns of B that another one packs.
        n >= 2 * COLUMN_CUT
    } else {
        m < n && m < 2 * ROW_BLOCK
    };
    if by_columns {
        let cut = (n / 2).next_multiple_of(COLUMN_CUT).min(n);
        vec![Tile { rows: 0..m, cols: 0..cut }, Tile { rows: 0..m, cols: cut..n }]
    } else {
        let block = if kernels.isa() == Isa::Amx { ROW_CUT_OF_TILES } else { ROW_CUT };
        let cut = (m / 2).next_multiple_of(block).min(m);
        vec![Tile { rows: 0..cut, cols: 0..n }, Tile { rows: cut..m, cols: 0..n }]
    }
}

/// The calls that a part is made of.
fn tiles(problem: &Problem, part: &Tile) -> Vec<Tile> {
    let (height, width) = if problem.product.is_weight_gradient() {
        (WEIGHT_TILE, WEIGHT_TILE)
    } else {
        (ROW_BLOCK, part.cols.len().max(1))
    };
    let ranges = |of: &Range<usize>, step: usize| -> Vec<Range<usize>> {
        let end = of.end;
        of.clone().step_by(step).map(|first| first..(first + step).min(end)).collect()
    };
    let mut list = Vec::new();
    for rows in ranges(&part.rows, height) {
        for cols in ranges(&part.cols, width) {
            list.push(Tile { rows: rows.clone(), cols });
        }
    }
    list
}

/// What the kernels write.
///
/// # Safety
/// It may have any bits, and lie where floats do.
#[expect(unsafe_code, reason = "results of either kind lie in memory of floats")]
unsafe trait Element: Copy {}
#[expect(unsafe_code, reason = "a float")]
// SAFETY: a float.
unsafe impl Element for f32 {}
#[expect(unsafe_code, reason = "16 bits")]
// SAFETY: any 16 bits are one, and lie at even addresses.
unsafe impl Element for Bf16 {}

fn reborrow<'a>(m: &'a mut OperandMut<'_>) -> OperandMut<'a> {
    match m {
        OperandMut::Float(m) => OperandMut::Float(m.reborrow()),
        OperandMut::Half(m) => OperandMut::Half(m.reborrow()),
    }
}

/// Writable views of tiles of `c`, which has `n` columns, rows being `stride` elements apart.
///
/// # Panics
/// If tiles overlap, or one is outside.
fn views<'c, 't, E: Element>(
    c: &'c mut [f32],
    (n, stride): (usize, usize),
    tiles: impl Iterator<Item = &'t Tile> + Clone,
) -> Vec<MatMut<'c, E>> {
    let len = size_of_val(c) / size_of::<E>();
    let apart = |a: &Range<usize>, b: &Range<usize>| a.end <= b.start || b.end <= a.start;
    for (i, a) in tiles.clone().enumerate() {
        assert!(a.cols.end <= n && a.rows.end * stride <= len, "{a:?} is outside");
        for b in tiles.clone().skip(i + 1) {
            assert!(apart(&a.rows, &b.rows) || apart(&a.cols, &b.cols), "{a:?} and {b:?} overlap");
        }
    }
    let start = c.as_mut_ptr().cast::<E>();
    let view = |Tile { rows, cols }: &Tile| {
        #[expect(unsafe_code, reason = "halves of rows cannot be told apart by slices")]
        // SAFETY: the tile is inside C and overlaps no other, as just checked; C is borrowed
        // exclusively for 'c; its floats may be read and written as either kind of elements.
        unsafe {
            let first = start.add(rows.start * stride + cols.start);
            MatMut::from_raw(first, rows.len(), cols.len(), stride)
        }
    };
    tiles.map(view).collect()
}

/// Floating-point operations a second at most: multiply-adds, or products of bf16, in registers
/// of one thread, or of two at a time.
#[must_use]
pub fn peak(kernels: &Kernels, places: Option<Places>) -> f64 {
    // Some 100 us.
    const ITERATIONS: u64 = 100_000;
    const PASSES: u32 = 40;
    let mut states = vec![0_u64; 1 + usize::from(places.is_some())];
    let calls = Calls { warm: 4, timed: PASSES };
    let time = together(&mut states, calls, places, |flops| {
        let (done, checksum) = kernels.fma_peak_pass(black_box(ITERATIONS));
        black_box(checksum);
        *flops = done;
    });
    (states.iter().sum::<u64>() * u64::from(PASSES)) as f64 / time.as_secs_f64()
}
