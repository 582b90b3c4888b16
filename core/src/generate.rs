//! Running a model token by token, with a cache of keys and values.
//!
//! A [`Generator`] feeds tokens through the model in chunks of up to [`ROW_BLOCK`] and
//! keeps every block's keys and values, so each token is computed once. Positions
//! are learned, so a context that is full cannot slide: the generator starts again
//! from its newer half ([`Generator::logits_after`]).

use crate::config::{ConfigError, ModelConfig};
use crate::line::{LANES, Line, floats_mut};
use crate::params::{BlockParam, Param, ParamTable};
use crate::plan::{PlanError, Pool, ROW_BLOCK, check_kernels, packed_block, to_lines};
use cllm_kernels::{Attention, Epilogue, KernelSet, Kernels, MatMut, MatRef, Packed};
use core::fmt;

/// Exact sizes of the memory that generation needs besides the weights.
#[derive(Clone, Copy, Debug)]
pub struct GeneratePlan {
    config: ModelConfig,
    table: ParamTable,
    packed_len: usize,
    cache_len: usize,
    activations_len: usize,
    chunk: usize,
    scratch_len: usize,
    set: KernelSet,
}

/// The memory that a [`Generator`] works in: lines as the plan says.
#[derive(Debug)]
pub struct GeneratePools<'a> {
    /// The weights: an arena of the config's table. Only read.
    pub parameters: &'a [f32],
    /// [`GeneratePlan::packed_lines`] lines.
    pub packed: &'a mut [Line],
    /// [`GeneratePlan::cache_lines`] lines.
    pub cache: &'a mut [Line],
    /// [`GeneratePlan::activation_lines`] lines.
    pub activations: &'a mut [Line],
}

impl GeneratePlan {
    /// Plans one stream of text.
    ///
    /// # Errors
    /// What is wrong with the config.
    pub fn new(config: &ModelConfig, kernels: &Kernels) -> Result<Self, PlanError> {
        let table = ParamTable::new(config)?;
        let overflow = PlanError::Config(ConfigError::Overflow);
        Self::sizes(config, table, kernels).ok_or(overflow)
    }

    fn sizes(c: &ModelConfig, table: ParamTable, kernels: &Kernels) -> Option<Self> {
        let (d, t) = (c.d_model, c.block_size);
        let chunk = ROW_BLOCK.min(t);
        let mut block = 0_usize;
        packed_block(c, kernels, false, &mut |len| {
            let at = block;
            block = block.checked_add(to_lines(len)?)?;
            Some(at)
        })?;
        let head = to_lines(kernels.packed_len(d, c.vocab_size)?)?;
        let packed_len = block.checked_mul(c.n_layer)?.checked_add(head)?;
        let cache_len = to_lines(t.checked_mul(d)?)?.checked_mul(2 * c.n_layer)?;
        let scratch_len = kernels
            .attention_scratch_len(t, c.head_size())?
            .max(kernels.gemm_scratch_len(chunk, d.max(c.d_ff)));
        let mut activations_len = 0_usize;
        for len in Buffers::sizes(c, chunk, scratch_len)? {
            activations_len = activations_len.checked_add(to_lines(len)?)?;
        }
        let bytes = [packed_len, cache_len, activations_len];
        if bytes.iter().any(|n| *n > isize::MAX as usize / 4) {
            return None;
        }
        Some(Self {
            config: *c,
            table,
            packed_len,
            cache_len,
            activations_len,
            chunk,
            scratch_len,
            set: kernels.set(),
        })
    }

    /// The model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Lines for the weights as panels.
    #[must_use]
    pub fn packed_lines(&self) -> usize {
        self.packed_len / LANES
    }

    /// Lines for keys and values of a whole context.
    #[must_use]
    pub fn cache_lines(&self) -> usize {
        self.cache_len / LANES
    }

    /// Lines for the activations of a chunk, logits and scratch.
    #[must_use]
    pub fn activation_lines(&self) -> usize {
        self.activations_len / LANES
    }
}

/// Why tokens were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateError {
    /// There is no text to continue.
    Empty,
    /// A token id is not in the vocabulary.
    UnknownToken {
        /// The id.
        id: u32,
        /// The vocabulary.
        vocab_size: usize,
    },
}

impl fmt::Display for GenerateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("there is no token to continue from"),
            Self::UnknownToken { id, vocab_size } => {
                write!(f, "token id {id} is not below the vocabulary's {vocab_size}")
            }
        }
    }
}

impl core::error::Error for GenerateError {}

/// Views of the activations pool.
struct Buffers<'a> {
    x: &'a mut [f32],
    norm: &'a mut [f32],
    qkv: &'a mut [f32],
    att: &'a mut [f32],
    fc_pre: &'a mut [f32],
    fc: &'a mut [f32],
    stats: &'a mut [f32],
    logits: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<'a> Buffers<'a> {
    /// Floats of each buffer, in the order of the fields.
    fn sizes(c: &ModelConfig, rows: usize, scratch: usize) -> Option<[usize; 9]> {
        let (d, f) = (rows.checked_mul(c.d_model)?, rows.checked_mul(c.d_ff)?);
        Some([d, d, d.checked_mul(3)?, d, f, f, 2 * rows, c.vocab_size, scratch])
    }

    /// Cuts the pool; `None` if it is shorter than planned.
    fn new(plan: &GeneratePlan, pool: &'a mut [Line]) -> Option<Self> {
        let mut rest = floats_mut(pool);
        let sizes = Self::sizes(&plan.config, plan.chunk, plan.scratch_len)?;
        let mut parts = sizes.map(|len| {
            let (part, tail) = core::mem::take(&mut rest).split_at_mut_checked(to_lines(len)?)?;
            rest = tail;
            Some(&mut part[..len])
        });
        let [x, norm, qkv, att, fc_pre, fc, stats, logits, scratch] = &mut parts;
        Some(Self {
            x: x.take()?,
            norm: norm.take()?,
            qkv: qkv.take()?,
            att: att.take()?,
            fc_pre: fc_pre.take()?,
            fc: fc.take()?,
            stats: stats.take()?,
            logits: logits.take()?,
            scratch: scratch.take()?,
        })
    }
}

/// Continues one text.
pub struct Generator<'a> {
    plan: GeneratePlan,
    kernels: &'static Kernels,
    parameters: &'a [f32],
    packed: &'a [f32],
    cache: &'a mut [f32],
    buffers: Buffers<'a>,
    /// Where in the caller's text position 0 of the cache is.
    start: usize,
    /// Positions that the cache holds.
    cached: usize,
}

impl fmt::Debug for Generator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generator({} of {} positions)", self.cached, self.plan.config.block_size)
    }
}

impl<'a> Generator<'a> {
    /// Packs the weights and starts with an empty context.
    ///
    /// # Errors
    /// The plan is for other kernels, or a pool is too small; the cache counts as activations.
    pub fn new(
        plan: &GeneratePlan,
        kernels: &'static Kernels,
        pools: GeneratePools<'a>,
    ) -> Result<Self, PlanError> {
        check_kernels(plan.set, kernels)?;
        let check = |pool, need: usize, got: usize| {
            let (need, got) = (need * size_of::<f32>(), got * size_of::<f32>());
            if got < need { Err(PlanError::TooSmall { pool, need, got }) } else { Ok(()) }
        };
        check(Pool::Parameters, plan.table.arena_len(), pools.parameters.len())?;
        check(Pool::Packed, plan.packed_len, pools.packed.len() * LANES)?;
        check(Pool::Activations, plan.cache_len, pools.cache.len() * LANES)?;
        check(Pool::Activations, plan.activations_len, pools.activations.len() * LANES)?;
        let packed = floats_mut(pools.packed);
        pack(plan, kernels, pools.parameters, packed);
        let need = plan.activations_len * size_of::<f32>();
        let buffers = Buffers::new(plan, pools.activations).ok_or(PlanError::TooSmall {
            pool: Pool::Activations,
            need,
            got: 0,
        })?;
        Ok(Self {
            plan: *plan,
            kernels,
            parameters: pools.parameters,
            packed,
            cache: floats_mut(pools.cache),
            buffers,
            start: 0,
            cached: 0,
        })
    }

    /// Forgets the text.
    pub fn reset(&mut self) {
        self.start = 0;
        self.cached = 0;
    }

    /// The logits of the token that follows `text`.
    ///
    /// `text` is the whole text so far: what earlier calls were given, and more behind
    /// it. Only what is new is computed. When the context is full, it starts
    /// again from the newer half of it.
    ///
    /// # Errors
    /// The text is empty or has an unknown token; the context is as before.
    pub fn logits_after(&mut self, text: &[u32]) -> Result<&[f32], GenerateError> {
        let c = self.plan.config;
        if text.is_empty() {
            return Err(GenerateError::Empty);
        }
        if let Some(id) = text.iter().find(|id| **id as usize >= c.vocab_size) {
            return Err(GenerateError::UnknownToken { id: *id, vocab_size: c.vocab_size });
        }
        if text.len() <= self.start {
            self.reset();
        }
        if text.len() - self.start > c.block_size {
            self.start = text.len() - c.block_size.div_ceil(2);
            self.cached = 0;
        }
        // The last token of a text that was fed before is fed again at its own place.
        let fresh = (self.start + self.cached).min(text.len() - 1);
        self.cached = fresh - self.start;
        for chunk in text[fresh..].chunks(self.plan.chunk) {
            self.feed(chunk);
        }
        Ok(self.buffers.logits)
    }

    /// Runs a chunk of tokens behind the cached ones and leaves the last one's logits.
    fn feed(&mut self, tokens: &[u32]) {
        let c = self.plan.config;
        let (rows, d, first) = (tokens.len(), c.d_model, self.cached);
        let vector = |param| vector(&self.plan.table, self.parameters, param);
        let x = &mut self.buffers.x[..rows * d];
        self.kernels.embedding(
            tokens,
            vector(Param::TokenTable).unwrap_or(&[]),
            vector(Param::PositionTable).unwrap_or(&[]),
            0,
            rows,
            first,
            MatMut::new(x, rows, d, d),
        );
        for block in 0..c.n_layer {
            self.attention_half(block, rows, first);
            self.feed_forward_half(block, rows);
        }
        self.cached = first + rows;
        self.norm((Param::FinalGain, Param::FinalBias), rows);
        let b = &mut self.buffers;
        let last = &b.norm[(rows - 1) * d..rows * d];
        let at = self.plan.packed_len - head_len(&c, self.kernels);
        let head = packed(self.kernels, self.packed, at, d, c.vocab_size);
        let logits = MatMut::new(b.logits, 1, c.vocab_size, c.vocab_size);
        self.kernels.gemm(
            MatRef::new(last, 1, d, d),
            head,
            logits,
            false,
            Epilogue::None,
            b.scratch,
        );
    }

    /// `norm = layer_norm(x)` for the first `rows` rows.
    fn norm(&mut self, (gain, bias): (Param, Param), rows: usize) {
        let d = self.plan.config.d_model;
        let b = &mut self.buffers;
        let (mean, rstd) = b.stats[..2 * rows].split_at_mut(rows);
        self.kernels.layer_norm(
            MatRef::new(b.x, rows, d, d),
            vector(&self.plan.table, self.parameters, gain).unwrap_or(&[]),
            vector(&self.plan.table, self.parameters, bias),
            self.plan.config.norm_eps,
            MatMut::new(b.norm, rows, d, d),
            mean,
            rstd,
        );
    }

    /// `x += attention(norm(x))`, with the new keys and values added to the cache.
    fn attention_half(&mut self, block: usize, rows: usize, first: usize) {
        use BlockParam::*;
        let c = self.plan.config;
        let (d, head) = (c.d_model, c.head_size());
        let param = |p| Param::Block(block, p);
        self.norm((param(Norm1Gain), param(Norm1Bias)), rows);
        let vector = |p| vector(&self.plan.table, self.parameters, param(p));
        let at = Offsets::new(&c, self.kernels, block);
        let b = &mut self.buffers;
        let weights = packed(self.kernels, self.packed, at.qkv, d, 3 * d);
        let bias = vector(QkvBias).map_or(Epilogue::None, Epilogue::Bias);
        let qkv = MatMut::new(b.qkv, rows, 3 * d, 3 * d);
        self.kernels.gemm(MatRef::new(b.norm, rows, d, d), weights, qkv, false, bias, b.scratch);

        let per_block = 2 * c.block_size.saturating_mul(d).next_multiple_of(LANES);
        let (keys, values) =
            self.cache[block * per_block..][..per_block].split_at_mut(per_block / 2);
        for (r, row) in b.qkv[..rows * 3 * d].chunks_exact(3 * d).enumerate() {
            let to = (first + r) * d..(first + r + 1) * d;
            keys[to.clone()].copy_from_slice(&row[d..2 * d]);
            values[to].copy_from_slice(&row[2 * d..]);
        }
        let seen = first + rows;
        for h in 0..c.n_head {
            let column = h * head;
            let attention = Attention {
                q: MatRef::new(&b.qkv[column..], rows, head, 3 * d),
                k: MatRef::new(&keys[column..], seen, head, d),
                v: MatRef::new(&values[column..], seen, head, d),
                first,
                scale: 1.0 / libm::sqrtf(head as f32),
                dropout: None,
            };
            let out = MatMut::new(&mut b.att[column..], rows, head, d);
            self.kernels.attention(&attention, out, None, b.scratch);
        }
        let weights = packed(self.kernels, self.packed, at.att, d, d);
        // The product goes to `norm`, which is free again, for x is its residual.
        let epilogue = Epilogue::Residual {
            bias: vector(AttnOutBias),
            residual: MatRef::new(b.x, rows, d, d),
            dropout: None,
        };
        let out = MatMut::new(b.norm, rows, d, d);
        self.kernels.gemm(MatRef::new(b.att, rows, d, d), weights, out, false, epilogue, b.scratch);
        b.x[..rows * d].copy_from_slice(&b.norm[..rows * d]);
    }

    /// `x += mlp(norm(x))`.
    fn feed_forward_half(&mut self, block: usize, rows: usize) {
        use BlockParam::*;
        let c = self.plan.config;
        let (d, f) = (c.d_model, c.d_ff);
        let param = |p| Param::Block(block, p);
        self.norm((param(Norm2Gain), param(Norm2Bias)), rows);
        let vector = |p| vector(&self.plan.table, self.parameters, param(p));
        let at = Offsets::new(&c, self.kernels, block);
        let b = &mut self.buffers;
        let weights = packed(self.kernels, self.packed, at.fc, d, f);
        let epilogue =
            Epilogue::Gelu { bias: vector(FcBias), pre: MatMut::new(b.fc_pre, rows, f, f).into() };
        let out = MatMut::new(b.fc, rows, f, f);
        self.kernels.gemm(
            MatRef::new(b.norm, rows, d, d),
            weights,
            out,
            false,
            epilogue,
            b.scratch,
        );
        let weights = packed(self.kernels, self.packed, at.mlp, f, d);
        let epilogue = Epilogue::Residual {
            bias: vector(MlpOutBias),
            residual: MatRef::new(b.x, rows, d, d),
            dropout: None,
        };
        let out = MatMut::new(b.norm, rows, d, d);
        self.kernels.gemm(MatRef::new(b.fc, rows, f, f), weights, out, false, epilogue, b.scratch);
        b.x[..rows * d].copy_from_slice(&b.norm[..rows * d]);
    }
}

/// Offsets of a block's packed weights.
struct Offsets {
    qkv: usize,
    att: usize,
    fc: usize,
    mlp: usize,
}

impl Offsets {
    fn new(c: &ModelConfig, kernels: &Kernels, block: usize) -> Self {
        let mut len = 0;
        let place = packed_block(c, kernels, false, &mut |floats| {
            let at = len;
            len += to_lines(floats)?;
            Some(at)
        });
        // The plan has seen these sizes fit.
        let p = place.map_or([0; 4], |p| [p.qkv, p.att, p.fc, p.mlp]);
        let [qkv, att, fc, mlp] = p.map(|at| block * len + at);
        Self { qkv, att, fc, mlp }
    }
}

fn head_len(c: &ModelConfig, kernels: &Kernels) -> usize {
    kernels.packed_len(c.d_model, c.vocab_size).and_then(to_lines).unwrap_or(0)
}

fn packed<'p>(kernels: &Kernels, pool: &'p [f32], at: usize, k: usize, n: usize) -> Packed<'p> {
    let len = kernels.packed_len(k, n).unwrap_or(0);
    Packed::new(&pool[at..at + len], k, n)
}

fn vector<'p>(table: &ParamTable, arena: &'p [f32], param: Param) -> Option<&'p [f32]> {
    table.spec(param).map(|spec| &arena[spec.range()])
}

/// Packs every matrix of the model.
fn pack(plan: &GeneratePlan, kernels: &Kernels, arena: &[f32], pool: &mut [f32]) {
    let c = &plan.config;
    let mut put = |at: usize, source: MatRef<'_>| {
        let len = kernels.packed_len(source.rows(), source.cols()).unwrap_or(0);
        kernels.pack(source, &mut pool[at..at + len]);
    };
    let matrix = |param| {
        plan.table.spec(param).map(|s| MatRef::new(&arena[s.range()], s.rows, s.cols, s.cols))
    };
    for block in 0..c.n_layer {
        let at = Offsets::new(c, kernels, block);
        for (param, at) in [
            (BlockParam::Qkv, at.qkv),
            (BlockParam::AttnOut, at.att),
            (BlockParam::Fc, at.fc),
            (BlockParam::MlpOut, at.mlp),
        ] {
            if let Some(source) = matrix(Param::Block(block, param)) {
                put(at, source);
            }
        }
    }
    if let Some(head) = matrix(plan.table.head()) {
        put(plan.packed_len - head_len(c, kernels), head.t());
    }
}
