//! GPT-2 as one would explain it: loops over `f64`, one token at a time,
//! nothing shared with the code under test. Slow, and easy to believe.
//!
//! [`ReferenceModel::logits`] and [`ReferenceModel::loss`] are the forward
//! pass; [`ReferenceModel::derivative`] is a gradient without a backward pass,
//! by central differences, for any chosen element of any parameter.

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
    /// Number of attention heads.
    pub(crate) n_head: usize,
    /// Width of the residual stream.
    pub(crate) d_model: usize,
    /// Width of the hidden layer of the feed-forward part.
    pub(crate) d_ff: usize,
    /// Whether linear layers and norms have biases.
    pub(crate) bias: bool,
    /// Whether the head is `wte` itself.
    pub(crate) tied: bool,
    /// Added to the variance in every layer norm.
    pub(crate) layer_norm_eps: f64,
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
        }
    }
}

impl ReferenceConfig {
    /// Name and shape of every parameter, in the order of the project's table.
    pub(crate) fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (c, f) = (self.d_model, self.d_ff);
        let mut table = vec![
            ("wte.weight".to_owned(), vec![self.vocab_size, c]),
            ("wpe.weight".to_owned(), vec![self.block_size, c]),
        ];
        let mut layer = |name: String, weight: Vec<usize>| {
            let bias = vec![*weight.last().expect("a shape")];
            table.push((format!("{name}.weight"), weight));
            if self.bias {
                table.push((format!("{name}.bias"), bias));
            }
        };
        for i in 0..self.n_layer {
            layer(format!("h.{i}.ln_1"), vec![c]);
            layer(format!("h.{i}.attn.c_attn"), vec![c, 3 * c]);
            layer(format!("h.{i}.attn.c_proj"), vec![c, c]);
            layer(format!("h.{i}.ln_2"), vec![c]);
            layer(format!("h.{i}.mlp.c_fc"), vec![c, f]);
            layer(format!("h.{i}.mlp.c_proj"), vec![f, c]);
        }
        layer("ln_f".to_owned(), vec![c]);
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
            add(self.row("wte.weight", token as usize), self.row("wpe.weight", position))
        };
        let mut x: Vec<Vec<f64>> = tokens.iter().enumerate().map(embed).collect();
        for i in 0..self.config.n_layer {
            let mixed = self.attention(&x, &format!("h.{i}"));
            x = x.iter().zip(&mixed).map(|(x, mixed)| add(x, mixed)).collect();
            x = x.iter().map(|x| add(x, &self.feed_forward(x, &format!("h.{i}")))).collect();
        }
        let head = if self.config.tied { "wte.weight" } else { "lm_head.weight" };
        let logits = |x: &Vec<f64>| -> Vec<f64> {
            let x = self.layer_norm(x, "ln_f");
            (0..self.config.vocab_size).map(|token| dot(&x, self.row(head, token))).collect()
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

    /// `x W + b`, where `W` has a row for each input.
    fn linear(&self, x: &[f64], name: &str, outputs: usize) -> Vec<f64> {
        let weight = self.param(&format!("{name}.weight"));
        let mut y = vec![0.0; outputs];
        if self.config.bias {
            y.copy_from_slice(self.param(&format!("{name}.bias")));
        }
        for (x, row) in x.iter().zip(weight.chunks(outputs)) {
            for (y, w) in y.iter_mut().zip(row) {
                *y += x * w;
            }
        }
        y
    }

    fn layer_norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + self.config.layer_norm_eps).sqrt();
        let gain = self.param(&format!("{name}.weight"));
        let scaled: Vec<f64> = x.iter().zip(gain).map(|(x, g)| (x - mean) * scale * g).collect();
        if self.config.bias { add(&scaled, self.param(&format!("{name}.bias"))) } else { scaled }
    }

    /// What attention adds to the residual stream of each token.
    fn attention(&self, x: &[Vec<f64>], layer: &str) -> Vec<Vec<f64>> {
        let width = self.config.d_model;
        let head_size = width / self.config.n_head;
        let qkv = |x: &Vec<f64>| {
            let x = self.layer_norm(x, &format!("{layer}.ln_1"));
            self.linear(&x, &format!("{layer}.attn.c_attn"), 3 * width)
        };
        let qkv: Vec<Vec<f64>> = x.iter().map(qkv).collect();
        let mut result = Vec::new();
        for now in 0..x.len() {
            let mut mixed = vec![0.0; width];
            for start in (0..width).step_by(head_size) {
                let query = &qkv[now][start..start + head_size];
                let key = |t: usize| &qkv[t][width + start..width + start + head_size];
                let value = |t: usize| &qkv[t][2 * width + start..2 * width + start + head_size];
                let scores: Vec<f64> =
                    (0..=now).map(|t| dot(query, key(t)) / (head_size as f64).sqrt()).collect();
                let total = log_sum_exp(&scores);
                for (t, score) in scores.iter().enumerate() {
                    for (out, v) in mixed[start..start + head_size].iter_mut().zip(value(t)) {
                        *out += (score - total).exp() * v;
                    }
                }
            }
            result.push(self.linear(&mixed, &format!("{layer}.attn.c_proj"), width));
        }
        result
    }

    /// What the feed-forward part adds to the residual stream of one token.
    fn feed_forward(&self, x: &[f64], layer: &str) -> Vec<f64> {
        let x = self.layer_norm(x, &format!("{layer}.ln_2"));
        let hidden = self.linear(&x, &format!("{layer}.mlp.c_fc"), self.config.d_ff);
        let hidden: Vec<f64> = hidden.into_iter().map(gelu).collect();
        self.linear(&hidden, &format!("{layer}.mlp.c_proj"), self.config.d_model)
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
    let inner = (2.0 / core::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// `ln(sum(exp(x)))`, safe from overflow.
fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
