//! The forward pass: embedding, norms, products and attention of one tile each.
#![expect(unsafe_code, reason = "tiles of a step share memory: see `shared`")]

use super::{Desk, Site, Step};
use crate::architecture::Activation;
use crate::built::{ADAPTERS, DOCUMENTS, LLAMA};
use crate::params::Param;
use crate::plan::Columns;
use crate::previous::Previous;
use crate::program::{Matrix, Norm};
use cllm_kernels::{Angles, Attention, Dropout, Epilogue, Finish};
use core::ops::Range;

/// One head of one sequence.
pub(super) struct Head<'a> {
    /// Where its columns start in a row of queries, of keys and of values. Its columns of the output
    /// start where those of queries do.
    pub(super) columns: [usize; 3],
    /// Where its rows of lse start.
    pub(super) lse: usize,
    /// As in [`Attention`], like what is below.
    pub(super) starts: Option<&'a [u32]>,
    pub(super) window: Option<usize>,
    pub(super) scale: f32,
    pub(super) dropout: Option<(Dropout, u32)>,
}

impl Step<'_> {
    /// `x = dropout(scale (token + position + previous))` for one row block, without the position if it is told by
    /// angles, and with what comes from tokens before if they are added.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn embed(&self, tile: usize) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let at = self.plan.layout.block(0).x + first * d;
        // SAFETY: the tile owns its rows of x; tables are not being updated.
        unsafe {
            let places = self.vector(Param::PositionTable);
            let period = self.plan.batch.tokens;
            let mut row = first;
            while row < first + rows {
                // Up to the next document, if positions are those in a document.
                let (place, end) = match (places, self.starts()) {
                    (Some(_), Some(starts)) => self.document(starts, row, first + rows),
                    _ => (row, first + rows),
                };
                let to = at + (row - first) * d;
                let tokens = &self.tokens[row..end];
                if let Some(table) = self.vector(Param::TokenTable) {
                    let out = self.act.mat_mut(to, (end - row, d), d);
                    self.kernels.embedding(tokens, table, places, place, period, 0, out);
                } else if ADAPTERS {
                    let out = self.act.slice_mut(to, (end - row) * d);
                    self.look_up(tokens, places, place, out);
                }
                row = end;
            }
            if let Some(previous) = self.previous() {
                let x = self.act.slice_mut(at, rows * d);
                for (row, x) in x.chunks_exact_mut(d).enumerate() {
                    if let Some(table) = self.vector(Param::TokenTable) {
                        previous.add(first + row, table, x);
                    } else if let Some(table) = self.token_table.filter(|_| ADAPTERS) {
                        previous.add_of_bytes(first + row, table, x);
                    }
                }
            }
            if let Some(scale) = self.plan.config.arch.scale() {
                self.kernels.scale(self.act.slice_mut(at, rows * d), scale);
            }
            if let Some((mask, row)) = self.embed_dropout(first) {
                let x = self.act.mat_mut(at, (rows, d), d);
                self.kernels.dropout_in_place(x, &mask, row);
            }
        }
    }

    /// As the kernels' embedding, with a token table that is elsewhere.
    fn look_up(&self, tokens: &[u32], places: Option<&[f32]>, first: usize, out: &mut [f32]) {
        let Some(table) = self.token_table else { return };
        let (d, period) = (self.plan.config.d_model, self.plan.batch.tokens);
        for (number, (token, out)) in tokens.iter().zip(out.chunks_exact_mut(d)).enumerate() {
            let (values, _) = table[*token as usize * d * 4..][..d * 4].as_chunks::<4>();
            for (x, value) in out.iter_mut().zip(values) {
                *x = f32::from_le_bytes(*value);
            }
            if let Some(places) = places {
                let place = (first + number) % period;
                self.kernels.accumulate(out, &places[place * d..][..d]);
            }
        }
    }

    /// What the rows have of tokens before, if anything.
    ///
    /// # Safety
    /// The update is not running.
    pub(super) unsafe fn previous(&self) -> Option<Previous<'_>> {
        if self.plan.config.arch.previous() == 0 {
            return None;
        }
        // SAFETY: passed on from the caller.
        let weights = unsafe { self.vector(Param::Previous) }?;
        let (d, period) = (self.plan.config.d_model, self.plan.batch.tokens);
        Some(Previous { weights, d, tokens: self.tokens, period, starts: self.starts() })
    }

    /// The place of a row in its document, and where in `row..end` the next document begins.
    fn document(&self, starts: &[u32], row: usize, end: usize) -> (usize, usize) {
        let place = |row: usize| row % self.plan.batch.tokens - starts[row] as usize;
        let next = (row + 1..end).find(|row| place(*row) == 0);
        (place(row), next.unwrap_or(end))
    }

    /// One of the norms for one row block: into `held`, but for the first norm's output where
    /// that has a buffer of its own.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn norm(&self, norm: Norm, block: usize, tile: usize, held: &mut [f32]) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let b = self.plan.layout.block(block);
        let (x, moments) = match norm {
            Norm::First => (b.x, b.norm1),
            Norm::Second => (b.mid, b.norm2),
            Norm::Final => {
                let last = self.plan.config.n_layer - 1;
                (self.plan.layout.block_output(last), self.plan.layout.final_norm)
            }
        };
        let (gain, bias) = Self::norm_params(norm, block);
        // SAFETY: the tile owns its rows of the outputs; x's rows are done.
        unsafe {
            let Some(gain) = self.vector(gain) else { return };
            let y = if norm == Norm::First && !self.plan.layout.norm1_in_place() {
                self.operand_mut(self.plan.layout.norm1(block), (first, rows), d)
            } else {
                self.kernels.operand_mut(held, rows, d)
            };
            self.kernels.layer_norm(
                self.act.mat(x + first * d, (rows, d), d),
                gain,
                self.vector(bias),
                self.plan.config.norm_eps,
                y,
                self.has_means().then(|| self.act.slice_mut(moments.mean + first, rows)),
                self.act.slice_mut(moments.rstd + first, rows),
            );
        }
    }

    /// `qkv = norm1 W + b` for one row block, queries and keys turned to their positions if those
    /// are told by angles.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn qkv(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let (first, rows) = self.rows(tile);
        let (d, width) = (self.plan.config.d_model, self.plan.config.qkv_width());
        let qkv = self.plan.layout.block(block).qkv + first * width;
        // SAFETY: the tile owns its rows of qkv; norm1's rows are done.
        unsafe {
            let x = if self.plan.layout.norm1_in_place() {
                self.kernels.operand(desk.norm, rows, d)
            } else {
                self.operand(self.plan.layout.norm1(block), (first, rows), (0, d))
            };
            let out = self.act.mat_mut(qkv, (rows, width), width);
            let epilogue = self.bias(Matrix::Qkv, block).map_or(Epilogue::None, Epilogue::Bias);
            let addend = self.adapted(Matrix::Qkv, block, first, x, desk.addend, desk.scratch);
            let finish = Finish { addend, epilogue };
            self.product(x, self.weight(Matrix::Qkv, block), out, finish, desk.scratch);
            if self.plan.config.arch.norms_heads() {
                self.norm_heads(block, first, rows);
            }
            // Keys lie behind queries.
            let turned = self.plan.config.query_width() + self.plan.config.kv_width();
            let queries = self.plan.layout.heads(block)[0].from(first, 0);
            self.turn(queries, (rows, turned), first, false);
        }
    }

    /// Turns heads side by side in some rows of queries or keys, or of their gradients, which begin at
    /// `x`: `first` is the first one's row in the batch. With `back` gradients of what was turned;
    /// nothing if positions are not told by angles.
    ///
    /// # Safety
    /// The caller's tile owns those columns of the rows.
    pub(super) unsafe fn turn(&self, x: Columns, shape: (usize, usize), first: usize, back: bool) {
        let Some([cos, sin]) = self.plan.layout.angles.filter(|_| LLAMA) else { return };
        let (t, c) = (self.plan.batch.tokens, &self.plan.config);
        let (head, half) = (c.head_size(), c.head_size() / 2);
        // SAFETY: angles are not written after the machine is made; the rest as the caller promised.
        unsafe {
            let angles = Angles {
                cos: self.act.mat(cos, (t, half), half),
                sin: self.act.mat(sin, (t, half), half),
            };
            let x = self.act.mat_mut(x.at, shape, x.stride);
            self.kernels.rotate(x, head, &angles, first, t, back);
        }
    }

    /// Head `h` of a sequence.
    pub(super) fn head(&self, block: usize, sequence: usize, h: usize) -> Head<'_> {
        let c = &self.plan.config;
        let (head, t) = (c.head_size(), self.plan.batch.tokens);
        // Heads of the whole batch have rows of lse and of the mask one after the other.
        let lse = (sequence * c.n_head + h) * t;
        let scale = 1.0 / libm::sqrtf(head as f32);
        let keys = h / self.group() * head;
        Head {
            columns: [h * head, keys, keys],
            lse,
            starts: self.starts().map(|starts| &starts[sequence * t..][..t]),
            window: c.arch.window.filter(|_| DOCUMENTS),
            scale,
            dropout: self.dropout(block, Site::Attention, lse),
        }
    }

    /// Queries, keys and values of a head of a sequence, of which these rows alone are read.
    ///
    /// # Safety
    /// The rows of queries, keys and values that are read through it are done, and no others are read.
    pub(super) unsafe fn head_inputs<'s>(
        &'s self,
        block: usize,
        sequence: usize,
        head: &Head<'s>,
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) -> Attention<'s> {
        let (heads, t) = (self.plan.layout.heads(block), self.plan.batch.tokens);
        let shape = (t, self.plan.config.head_size());
        let part = |i: usize, rows: &Range<usize>| {
            let Columns { at, stride } = heads[i].from(sequence * t, head.columns[i]);
            // SAFETY: passed on from the caller.
            unsafe { self.act.mat_in_part(at, shape, stride, rows.clone()) }
        };
        let (q, k, v) = (part(0, queries), part(1, keys), part(2, keys));
        let Head { starts, window, scale, dropout, .. } = *head;
        Attention { q, k, v, first: 0, starts, window, scale, dropout }
    }

    /// Heads of queries for each of keys and values.
    pub(super) fn group(&self) -> usize {
        if LLAMA { self.plan.config.n_head / self.plan.config.kv_heads() } else { 1 }
    }

    /// The heads of queries that some heads of keys and values serve.
    pub(super) fn served(&self, heads: Range<usize>) -> Range<usize> {
        heads.start * self.group()..heads.end * self.group()
    }

    /// Rows of the sequence of a span, and of the span within it.
    pub(super) fn span(&self, span: usize) -> (usize, Range<usize>) {
        let rows = self.plan.cut().span_rows(span);
        let first = rows.start / self.plan.batch.tokens * self.plan.batch.tokens;
        (first, rows.start - first..rows.end - first)
    }

    /// Attention of some heads for the queries of a span.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn attention(&self, block: usize, tile: usize, scratch: &mut [f32]) {
        let (c, t, grain) = (&self.plan.config, self.plan.batch.tokens, &self.plan.grain);
        let (b, width) = (self.plan.layout.block(block), c.query_width());
        let (span, part) = (tile / grain.forward_parts(), tile % grain.forward_parts());
        let (first, queries) = self.span(span);
        for h in self.served(grain.heads(part, c.kv_heads())) {
            // SAFETY: the tile owns its heads' columns of the span's rows and their
            // stretch of lse; qkv is done up to the span's end, and the kernel reads no more.
            unsafe {
                let head = self.head(block, first / t, h);
                let seen = 0..queries.end;
                let inputs = self.head_inputs(block, first / t, &head, &queries, &seen);
                let shape = (queries.len(), inputs.q.cols());
                let at = (first + queries.start) * width + head.columns[0];
                let out = self.act.mat_mut(b.att + at, shape, width);
                let lse = self.act.slice_mut(b.lse + head.lse + queries.start, queries.len());
                let queries = queries.clone();
                self.kernels.attention_queries(&inputs, queries, out, Some(lse), scratch);
            }
        }
    }

    /// `mid = x + dropout(att W + b)` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn attn_out(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let (first, rows) = self.rows(tile);
        let d = self.plan.config.d_model;
        let b = self.plan.layout.block(block);
        // SAFETY: the tile owns its rows of mid; att's and x's rows are done.
        unsafe {
            let width = self.plan.config.query_width();
            let x = self.act.mat(b.att + first * width, (rows, width), width);
            let out = self.act.mat_mut(b.mid + first * d, (rows, d), d);
            let epilogue = Epilogue::Residual {
                bias: self.bias(Matrix::AttnOut, block),
                residual: self.act.mat(b.x + first * d, (rows, d), d),
                dropout: self.dropout(block, Site::AttnOut, first),
            };
            let (more, scratch) = (&mut *desk.addend, &mut *desk.scratch);
            let addend = self.adapted(Matrix::AttnOut, block, first, x.into(), more, scratch);
            let finish = Finish { addend, epilogue };
            self.product(x, self.weight(Matrix::AttnOut, block), out, finish, scratch);
        }
    }

    /// `fc_pre = norm2 W + b` for one row block, and the activation of it if it is to be `activated`.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn fc(
        &self,
        block: usize,
        tile: usize,
        activated: bool,
        desk: &mut Desk<'_>,
    ) {
        let (first, rows) = self.rows(tile);
        let (d, f) = (self.plan.config.d_model, self.plan.config.d_ff);
        let (width, gated) = (self.plan.config.fc_width(), self.plan.config.arch.is_gated());
        // SAFETY: the tile owns its rows of fc_pre.
        unsafe {
            let x = self.kernels.operand(desk.norm, rows, d);
            let bias = self.bias(Matrix::Fc, block);
            let pre = self.operand_mut(self.plan.layout.fc(block), (first, rows), width);
            let (out, epilogue) = match bias {
                _ if activated && !gated => {
                    let epilogue = match self.plan.config.arch.activation {
                        Activation::Relu2 => Epilogue::Relu2 { bias, pre },
                        Activation::Gelu | Activation::SwiGlu => Epilogue::Gelu { bias, pre },
                    };
                    (self.kernels.operand_mut(desk.fc, rows, f), epilogue)
                }
                Some(bias) => (pre, Epilogue::Bias(bias)),
                None => (pre, Epilogue::None),
            };
            let addend = self.adapted(Matrix::Fc, block, first, x, desk.addend, desk.scratch);
            let finish = Finish { addend, epilogue };
            self.product(x, self.weight(Matrix::Fc, block), out, finish, desk.scratch);
            if activated && gated {
                let pre = self.operand(self.plan.layout.fc(block), (first, rows), (0, width));
                self.kernels.swiglu(pre, self.kernels.operand_mut(desk.fc, rows, f));
            }
        }
    }

    /// The block's output `mid + dropout(fc W + b)` for one row block.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn mlp_out(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        let (first, rows) = self.rows(tile);
        let (d, f) = (self.plan.config.d_model, self.plan.config.d_ff);
        let b = self.plan.layout.block(block);
        let to = self.plan.layout.block_output(block);
        // SAFETY: the tile owns its rows of the output; mid's rows are done.
        unsafe {
            let x = self.kernels.operand(desk.fc, rows, f);
            let out = self.act.mat_mut(to + first * d, (rows, d), d);
            let epilogue = Epilogue::Residual {
                bias: self.bias(Matrix::MlpOut, block),
                residual: self.act.mat(b.mid + first * d, (rows, d), d),
                dropout: self.dropout(block, Site::MlpOut, first),
            };
            let addend = self.adapted(Matrix::MlpOut, block, first, x, desk.addend, desk.scratch);
            let finish = Finish { addend, epilogue };
            self.product(x, self.weight(Matrix::MlpOut, block), out, finish, desk.scratch);
        }
    }

    /// Makes the inner activations of a block again from its input and the output of its
    /// attention, for one row block: by the operations of the forward pass, so with the same
    /// bits, masks included. The activation is left to the backward pass, which makes it anyway.
    ///
    /// # Safety
    /// As for [`Step::run_tile`].
    pub(super) unsafe fn remake(&self, block: usize, tile: usize, desk: &mut Desk<'_>) {
        // SAFETY: passed on from the caller: the tile owns its rows of all that is made.
        unsafe {
            self.norm(Norm::First, block, tile, desk.norm);
            self.qkv(block, tile, desk);
            self.attn_out(block, tile, desk);
            self.norm(Norm::Second, block, tile, desk.norm);
            self.fc(block, tile, false, desk);
        }
    }
}
