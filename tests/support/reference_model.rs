//! GPT-2 and Llama as one would explain them: loops over `f64`, one token at a
//! time, nothing shared with the code under test but the names of the parts.
//! Slow, and easy to believe.
//!
//! [`ReferenceModel::logits`] and [`ReferenceModel::loss`] are the forward
//! pass; [`ReferenceModel::derivative`] is a gradient without a backward pass,
//! by central differences, for any chosen element of any parameter.

use cllm_core::{Activation, Architecture, NormKind, Positions, Rotary, Scaling};
use core::f64::consts::{PI, TAU};
use std::collections::BTreeMap;

use super::golden::{Golden, GoldenConfig, IGNORED};

/// Size and kind of a reference model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReferenceConfig {
    /// Number of distinct tokens.
    pub(crate) vocab_size: usize,
    /// Longest sequence.
    pub(crate) block_size: usize,
    /// Number of transformer layers.
    pub(crate) n_layer: usize,
    /// Number of attention heads, of queries.
    pub(crate) n_head: usize,
    /// Width of the residual stream.
    pub(crate) d_model: usize,
    /// Width of the hidden layer of the feed-forward part.
    pub(crate) d_ff: usize,
    /// Whether linear layers and norms have biases.
    pub(crate) bias: bool,
    /// Whether the head is `wte` itself.
    pub(crate) tied: bool,
    /// Added to the variance in every layer norm, and to the mean of squares in every RMS norm.
    pub(crate) layer_norm_eps: f64,
    /// What blocks are made of.
    pub(crate) arch: Architecture,
}

impl From<&GoldenConfig> for ReferenceConfig {
    fn from(config: &GoldenConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            block_size: config.block_size,
            n_layer: config.n_layer,
            n_head: config.n_head,
            d_model: config.d_model,
            d_ff: config.d_ff,
            bias: config.bias,
            tied: config.tied,
            layer_norm_eps: config.layer_norm_eps,
            arch: config.parts.architecture(),
        }
    }
}

impl ReferenceConfig {
    /// Columns of a head.
    fn head_size(&self) -> usize {
        self.arch.head_size.unwrap_or(self.d_model / self.n_head)
    }

    /// Columns of all queries, and of all keys, of which there are as many as of values.
    fn widths(&self) -> (usize, usize) {
        let kv_heads = self.arch.n_kv_head.unwrap_or(self.n_head);
        (self.n_head * self.head_size(), kv_heads * self.head_size())
    }

    /// Outputs of the first matrix of the feed-forward part.
    fn hidden(&self) -> usize {
        match self.arch.activation {
            Activation::Gelu | Activation::Relu2 => self.d_ff,
            Activation::SwiGlu => 2 * self.d_ff,
        }
    }

    /// Name and shape of every parameter, in the order of the project's table.
    pub(crate) fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (c, f) = (self.d_model, self.d_ff);
        let (queries, keys) = self.widths();
        let mut table = vec![("wte.weight".to_owned(), vec![self.vocab_size, c])];
        if self.arch.positions == Positions::Learned {
            table.push(("wpe.weight".to_owned(), vec![self.block_size, c]));
        }
        if self.arch.previous_tokens > 0 {
            table.push(("previous.weight".to_owned(), vec![self.arch.previous_tokens, c]));
        }
        let norm_bias = self.bias && self.arch.norm == NormKind::Layer;
        let mut layer = |name: String, weight: Vec<usize>, has_bias: bool| {
            let bias = vec![*weight.last().expect("a shape")];
            table.push((format!("{name}.weight"), weight));
            if has_bias {
                table.push((format!("{name}.bias"), bias));
            }
        };
        for i in 0..self.n_layer {
            let qkv = vec![c, queries + 2 * keys];
            layer(format!("h.{i}.ln_1"), vec![c], norm_bias);
            layer(format!("h.{i}.attn.c_attn"), qkv, self.bias || self.arch.qkv_bias);
            if self.arch.qk_norm {
                layer(format!("h.{i}.attn.q_norm"), vec![self.head_size()], false);
                layer(format!("h.{i}.attn.k_norm"), vec![self.head_size()], false);
            }
            layer(format!("h.{i}.attn.c_proj"), vec![queries, c], self.bias);
            layer(format!("h.{i}.ln_2"), vec![c], norm_bias);
            layer(format!("h.{i}.mlp.c_fc"), vec![c, self.hidden()], self.bias);
            layer(format!("h.{i}.mlp.c_proj"), vec![f, c], self.bias);
        }
        layer("ln_f".to_owned(), vec![c], norm_bias);
        if !self.tied {
            table.push(("lm_head.weight".to_owned(), vec![self.vocab_size, c]));
        }
        table
    }
}

/// A model whose parameters may be read and changed by name.
#[derive(Debug, Clone)]
pub(crate) struct ReferenceModel {
    /// Size and kind.
    pub(crate) config: ReferenceConfig,
    /// Values of each parameter in row-major order, by name.
    pub(crate) params: BTreeMap<String, Vec<f64>>,
}

impl ReferenceModel {
    /// A model with the given parameters: names and `f32` values.
    ///
    /// # Panics
    /// Where a parameter is missing, left over, or has the wrong length.
    pub(crate) fn new<'a>(
        config: ReferenceConfig,
        params: impl IntoIterator<Item = (&'a str, &'a [f32])>,
    ) -> Self {
        let widen = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
        let params: BTreeMap<String, Vec<f64>> =
            params.into_iter().map(|(name, values)| (name.to_owned(), widen(values))).collect();
        let table = config.parameters();
        assert_eq!(params.len(), table.len(), "number of parameters");
        for (name, shape) in table {
            let values = params.get(&name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(values.len(), shape.iter().product::<usize>(), "length of {name}");
        }
        Self { config, params }
    }

    /// The model of a golden file, with its initial weights.
    pub(crate) fn from_golden(golden: &Golden) -> Self {
        let params = golden.params.iter().map(|(name, _, values)| (&**name, &**values));
        Self::new((&golden.config).into(), params)
    }

    /// Logits, a row of `vocab_size` for each token of one sequence.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        assert!(tokens.len() <= self.config.block_size, "the sequence is longer than a block");
        let embed = |(position, &token): (usize, &u32)| {
            let token = self.row("wte.weight", token as usize);
            let mut x = match self.config.arch.positions {
                Positions::Learned => add(token, self.row("wpe.weight", position)),
                Positions::Rotary(_) => token.to_vec(),
            };
            for back in 1..=self.config.arch.previous_tokens.min(position) {
                let before = self.row("wte.weight", tokens[position - back] as usize);
                let weights = self.row("previous.weight", back - 1);
                let shifted: Vec<f64> = before.iter().zip(weights).map(|(x, w)| x * w).collect();
                x = add(&x, &shifted);
            }
            let scale = f64::from(self.config.arch.embedding_scale);
            x.iter_mut().for_each(|x| *x *= scale);
            x
        };
        let mut x: Vec<Vec<f64>> = tokens.iter().enumerate().map(embed).collect();
        for i in 0..self.config.n_layer {
            let mixed = self.attention(&x, &format!("h.{i}"));
            x = x.iter().zip(&mixed).map(|(x, mixed)| add(x, mixed)).collect();
            x = x.iter().map(|x| add(x, &self.feed_forward(x, &format!("h.{i}")))).collect();
        }
        let head = if self.config.tied { "wte.weight" } else { "lm_head.weight" };
        let logits = |x: &Vec<f64>| -> Vec<f64> {
            let x = self.norm(x, "ln_f");
            let logits = (0..self.config.vocab_size).map(|token| dot(&x, self.row(head, token)));
            let Some(cap) = self.config.arch.logit_softcap.map(f64::from) else {
                return logits.collect();
            };
            logits.map(|logit| cap * (logit / cap).tanh()).collect()
        };
        x.iter().map(logits).collect()
    }

    /// Mean cross-entropy over the targets that count ([`IGNORED`] ones do
    /// not) of sequences of `length` tokens each, one after the other. For a
    /// step of several micro-batches, hand over all of them at once.
    pub(crate) fn loss(&self, tokens: &[u32], targets: &[u32], length: usize) -> f64 {
        assert_eq!(tokens.len(), targets.len(), "a target for each token");
        assert_eq!(tokens.len() % length, 0, "whole sequences");
        let (mut total, mut counted) = (0.0, 0);
        for (tokens, targets) in tokens.chunks(length).zip(targets.chunks(length)) {
            for (logits, &target) in self.logits(tokens).iter().zip(targets) {
                if target != IGNORED {
                    total += log_sum_exp(logits) - logits[target as usize];
                    counted += 1;
                }
            }
        }
        total / f64::from(counted)
    }

    /// Derivative of [`Self::loss`] by element `index` of parameter `name`, by
    /// central differences: with `h` = 1e-5 the error is about 1e-10, of which
    /// a part is the truncated series and a part the rounding of the loss.
    pub(crate) fn derivative(
        &mut self,
        (name, index): (&str, usize),
        (tokens, targets, length): (&[u32], &[u32], usize),
    ) -> f64 {
        const H: f64 = 1e-5;
        let value = self.param(name)[index];
        let mut loss_at = |value: f64| {
            self.params.get_mut(name).expect("looked up before")[index] = value;
            self.loss(tokens, targets, length)
        };
        let (above, below) = (loss_at(value + H), loss_at(value - H));
        loss_at(value);
        (above - below) / (2.0 * H)
    }

    fn param(&self, name: &str) -> &[f64] {
        self.params.get(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    /// One row of a table that holds a vector of `d_model` for each index.
    fn row(&self, name: &str, index: usize) -> &[f64] {
        let width = self.config.d_model;
        &self.param(name)[index * width..(index + 1) * width]
    }

    /// `x W + b`, where `W` has a row for each input, or `x W` where there is no `b`.
    fn linear(&self, x: &[f64], name: &str, outputs: usize) -> Vec<f64> {
        let weight = self.param(&format!("{name}.weight"));
        let mut y = vec![0.0; outputs];
        if let Some(bias) = self.params.get(&format!("{name}.bias")) {
            y.copy_from_slice(bias);
        }
        for (x, row) in x.iter().zip(weight.chunks(outputs)) {
            for (y, w) in y.iter_mut().zip(row) {
                *y += x * w;
            }
        }
        y
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = match self.config.arch.norm {
            NormKind::Layer => x.iter().sum::<f64>() / n,
            NormKind::Rms => 0.0,
        };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + self.config.layer_norm_eps).sqrt();
        let gain = self.param(&format!("{name}.weight"));
        let scaled: Vec<f64> = x.iter().zip(gain).map(|(x, g)| (x - mean) * scale * g).collect();
        match self.params.get(&format!("{name}.bias")) {
            Some(bias) => add(&scaled, bias),
            None => scaled,
        }
    }

    /// What attention adds to the residual stream of each token.
    fn attention(&self, x: &[Vec<f64>], layer: &str) -> Vec<Vec<f64>> {
        let head_size = self.config.head_size();
        let (queries, keys) = self.config.widths();
        let qkv = |(position, x): (usize, &Vec<f64>)| {
            let x = self.norm(x, &format!("{layer}.ln_1"));
            let mut qkv = self.linear(&x, &format!("{layer}.attn.c_attn"), queries + 2 * keys);
            if self.config.arch.qk_norm {
                for (index, head) in qkv[..queries + keys].chunks_mut(head_size).enumerate() {
                    let kind = if index < self.config.n_head { "q_norm" } else { "k_norm" };
                    let gain = self.param(&format!("{layer}.attn.{kind}.weight"));
                    norm_head(head, gain, self.config.layer_norm_eps);
                }
            }
            if let Positions::Rotary(rotary) = self.config.arch.positions {
                for head in qkv[..queries + keys].chunks_mut(head_size) {
                    rotate(head, rotary, position);
                }
            }
            qkv
        };
        let qkv: Vec<Vec<f64>> = x.iter().enumerate().map(qkv).collect();
        let mut result = Vec::new();
        for now in 0..x.len() {
            let mut mixed = vec![0.0; queries];
            for head in 0..self.config.n_head {
                let query = head * head_size;
                // Neighbouring heads of queries share one of keys and values.
                let shared = head / (queries / keys) * head_size;
                let columns = |t: usize, start: usize| &qkv[t][start..start + head_size];
                let score = |t: usize| {
                    dot(columns(now, query), columns(t, queries + shared))
                        / (head_size as f64).sqrt()
                };
                let first = (now + 1).saturating_sub(self.config.arch.window.unwrap_or(usize::MAX));
                let scores: Vec<f64> = (first..=now).map(score).collect();
                let total = log_sum_exp(&scores);
                for (t, score) in (first..).zip(&scores) {
                    let value = columns(t, queries + keys + shared);
                    for (out, v) in mixed[query..query + head_size].iter_mut().zip(value) {
                        *out += (score - total).exp() * v;
                    }
                }
            }
            result.push(self.linear(&mixed, &format!("{layer}.attn.c_proj"), self.config.d_model));
        }
        result
    }

    /// What the feed-forward part adds to the residual stream of one token.
    fn feed_forward(&self, x: &[f64], layer: &str) -> Vec<f64> {
        let x = self.norm(x, &format!("{layer}.ln_2"));
        let hidden = self.linear(&x, &format!("{layer}.mlp.c_fc"), self.config.hidden());
        let hidden: Vec<f64> = match self.config.arch.activation {
            Activation::Gelu => hidden.into_iter().map(gelu).collect(),
            Activation::Relu2 => hidden.into_iter().map(|x| x.max(0.0).powi(2)).collect(),
            Activation::SwiGlu => {
                let (gates, values) = hidden.split_at(self.config.d_ff);
                gates.iter().zip(values).map(|(gate, value)| silu(*gate) * value).collect()
            }
        };
        self.linear(&hidden, &format!("{layer}.mlp.c_proj"), self.config.d_model)
    }
}

/// The RMS norm of one head of a query or a key.
fn norm_head(head: &mut [f64], gain: &[f64], eps: f64) {
    let scale = 1.0 / (dot(head, head) / head.len() as f64 + eps).sqrt();
    for (x, g) in head.iter_mut().zip(gain) {
        *x *= scale * g;
    }
}

/// Turns one head of a query or a key by the angles of its position. A pair is a column of the
/// first half and the one at the same place in the second.
fn rotate(head: &mut [f64], rotary: Rotary, position: usize) {
    let size = head.len();
    let (first, second) = head.split_at_mut(size / 2);
    for (pair, (x, y)) in first.iter_mut().zip(second).enumerate() {
        let (sin, cos) = (position as f64 * frequency(rotary, pair, size)).sin_cos();
        (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
    }
}

/// Radians by which a pair turns from one position to the next.
fn frequency(Rotary { theta, scaling }: Rotary, pair: usize, head_size: usize) -> f64 {
    let plain = 1.0 / f64::from(theta).powf(2.0 * pair as f64 / head_size as f64);
    match scaling {
        Scaling::None => plain,
        Scaling::Linear { factor } => plain / f64::from(factor),
        Scaling::Llama3 { factor, low, high, original } => {
            let wave_length = TAU / plain;
            let (low, high, original) = (f64::from(low), f64::from(high), f64::from(original));
            let divided = plain / f64::from(factor);
            if wave_length > original / low {
                divided
            } else if wave_length < original / high {
                plain
            } else {
                let share = (original / wave_length - low) / (high - low);
                (1.0 - share) * divided + share * plain
            }
        }
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// GELU in its tanh approximation.
fn gelu(x: f64) -> f64 {
    let inner = (2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `ln(sum(exp(x)))`, safe from overflow.
fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
