//! GPT-2 on candle's layers.
//!
//! Candle's `LayerNorm`, `softmax_last_dim` and attention kernels have no backward pass and say
//! nothing where a gradient ends; so this takes its slower forms made of tensor operations, and
//! every step asks for a gradient of every parameter.

use candle_core::{D, DType, Device, Error, Result, Tensor, Var};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, loss, ops};
use peers_layers::{Found, Start, Trainer, clip_factor};
use std::process::ExitCode;

fn main() -> ExitCode {
    peers_layers::main::<Candle>("candle 0.11.1")
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
}

struct Block {
    norm1: Norm,
    qkv: Linear,
    attn_out: Linear,
    norm2: Norm,
    fc: Linear,
    mlp_out: Linear,
}

struct Candle {
    embedding: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    /// 0 where a query may look, minus infinity elsewhere.
    mask: Tensor,
    heads: usize,
    sequence: usize,
    eps: f32,
    clip: f64,
    vars: Vec<(String, Var)>,
    /// For matrices, which decay, and for all else.
    optimizers: [AdamW; 2],
}

impl Trainer for Candle {
    fn new(start: &Start) -> core::result::Result<Self, String> {
        let c = &start.config;
        let mut vars = Vec::new();
        let mut var = |name: String, turned: bool| -> core::result::Result<Tensor, String> {
            let values = start.parameter(&name)?;
            // Candle's layers have a row for each output.
            let values = if turned { &values.transposed() } else { values };
            let var = Var::from_slice(&values.data, values.shape.as_slice(), &Device::Cpu)
                .map_err(|e| e.to_string())?;
            vars.push((name, var.clone()));
            Ok(var.as_tensor().clone())
        };
        let embedding = var("wte.weight".into(), false)?;
        let positions = var("wpe.weight".into(), false)?;
        let mut blocks = Vec::new();
        for block in 0..c.n_layer {
            let mut norm = |name: &str| -> core::result::Result<Norm, String> {
                let weight = var(format!("h.{block}.{name}.weight"), false)?;
                Ok(Norm { weight, bias: var(format!("h.{block}.{name}.bias"), false)? })
            };
            let (norm1, norm2) = (norm("ln_1")?, norm("ln_2")?);
            let mut linear = |name: &str| -> core::result::Result<Linear, String> {
                let weight = var(format!("h.{block}.{name}.weight"), true)?;
                Ok(Linear::new(weight, Some(var(format!("h.{block}.{name}.bias"), false)?)))
            };
            blocks.push(Block {
                norm1,
                qkv: linear("attn.c_attn")?,
                attn_out: linear("attn.c_proj")?,
                norm2,
                fc: linear("mlp.c_fc")?,
                mlp_out: linear("mlp.c_proj")?,
            });
        }
        let weight = var("ln_f.weight".into(), false)?;
        let norm = Norm { weight, bias: var("ln_f.bias".into(), false)? };
        let optimizer = |matrices: bool| {
            let some = vars.iter().map(|(_, var)| var).filter(|var| (var.rank() == 2) == matrices);
            let params = ParamsAdamW {
                lr: 0.0,
                beta1: c.betas[0],
                beta2: c.betas[1],
                eps: c.eps,
                weight_decay: if matrices { c.weight_decay } else { 0.0 },
            };
            AdamW::new(some.cloned().collect(), params).map_err(|e| e.to_string())
        };
        let optimizers = [optimizer(true)?, optimizer(false)?];
        let sequence = c.tokens_per_sequence;
        Ok(Self {
            embedding,
            positions,
            blocks,
            norm,
            mask: mask(sequence).map_err(|e| e.to_string())?,
            heads: c.n_head,
            sequence,
            eps: c.layer_norm_eps as f32,
            clip: c.clip,
            vars,
            optimizers,
        })
    }

    fn step(
        &mut self,
        tokens: &[u32],
        targets: &[u32],
        rate: f64,
    ) -> core::result::Result<Found, String> {
        self.try_step(tokens, targets, rate).map_err(|e| e.to_string())
    }
}

/// `[T, T]`.
fn mask(sequence: usize) -> Result<Tensor> {
    let element = |i: usize| if i % sequence > i / sequence { f32::NEG_INFINITY } else { 0.0 };
    let elements: Vec<f32> = (0..sequence * sequence).map(element).collect();
    Tensor::from_vec(elements, (sequence, sequence), &Device::Cpu)
}

impl Candle {
    fn try_step(&mut self, tokens: &[u32], targets: &[u32], rate: f64) -> Result<Found> {
        let batch = tokens.len() / self.sequence;
        let tokens = Tensor::from_slice(tokens, (batch, self.sequence), &Device::Cpu)?;
        let targets = Tensor::from_slice(targets, targets.len(), &Device::Cpu)?;
        let loss = loss::cross_entropy(&self.logits(&tokens)?, &targets)?;
        let mut grads = loss.backward()?;
        let mut squares = Vec::new();
        for (name, var) in &self.vars {
            let Some(grad) = grads.get(var) else {
                return Err(Error::Msg(format!("{name} got no gradient")));
            };
            squares.push(grad.sqr()?.sum_all()?);
        }
        let norm = Tensor::stack(&squares, 0)?.sum_all()?.to_scalar::<f32>()?;
        let grad_norm = f64::from(norm).sqrt();
        let factor = clip_factor(self.clip, grad_norm);
        if factor < 1.0 {
            for (_, var) in &self.vars {
                if let Some(grad) = grads.remove(var) {
                    grads.insert(var, (grad * factor)?);
                }
            }
        }
        for optimizer in &mut self.optimizers {
            optimizer.set_learning_rate(rate);
            optimizer.step(&grads)?;
        }
        Ok(Found { loss: loss.to_dtype(DType::F64)?.to_scalar()?, grad_norm })
    }

    /// `[B T, V]` for `[B, T]`.
    fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        let positions = self.positions.narrow(0, 0, self.sequence)?;
        let embedded = candle_nn::Embedding::new(self.embedding.clone(), self.embedding.dim(1)?);
        let mut x = embedded.forward(tokens)?.broadcast_add(&positions)?;
        for block in &self.blocks {
            x = (&x + self.attention(block, &self.normed(&x, &block.norm1)?)?)?;
            let hidden = block.fc.forward(&self.normed(&x, &block.norm2)?)?.gelu()?;
            x = (&x + block.mlp_out.forward(&hidden)?)?;
        }
        let x = self.normed(&x, &self.norm)?.flatten_to(1)?;
        x.matmul(&self.embedding.t()?)
    }

    fn normed(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        ops::layer_norm_slow(x, &norm.weight, &norm.bias, self.eps)
    }

    fn attention(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let (batch, sequence, width) = x.dims3()?;
        let qkv = block.qkv.forward(x)?;
        let head = |part: usize| {
            qkv.narrow(2, part * width, width)?
                .reshape((batch, sequence, self.heads, width / self.heads))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (q, k, v) = (head(0)?, head(1)?, head(2)?);
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(&self.mask)?;
        let y = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        block.attn_out.forward(&y.transpose(1, 2)?.flatten_from(2)?)
    }
}
