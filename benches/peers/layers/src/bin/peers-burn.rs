//! GPT-2 on burn's layers, by its backend for CPUs (`flex`).

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::nn::loss::CrossEntropyLoss;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::gelu_approximate;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peers_layers::{Found, Start, Trainer, clip_factor};
use std::process::ExitCode;

fn main() -> ExitCode {
    peers_layers::main::<Burn>("burn 0.22.1")
}

#[derive(Module, Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    attn_out: Linear,
    norm2: LayerNorm,
    fc: Linear,
    mlp_out: Linear,
}

#[derive(Module, Debug)]
struct Gpt {
    embedding: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    heads: usize,
}

struct Burn {
    /// Taken while it is updated.
    model: Option<Gpt>,
    optimizer: ModuleOptimizer,
    device: Device,
    sequence: usize,
    clip: f64,
}

fn parameter<const R: usize>(
    start: &Start,
    name: &str,
    device: &Device,
) -> Result<Param<Tensor<R>>, String> {
    let values = start.parameter(name)?;
    let data = TensorData::new(values.data.clone(), values.shape.clone());
    Ok(Param::from_tensor(Tensor::from_data(data, device)))
}

impl Trainer for Burn {
    fn new(start: &Start) -> Result<Self, String> {
        let device = Device::flex().autodiff();
        let c = &start.config;
        let norm = |name: String| -> Result<LayerNorm, String> {
            let config = LayerNormConfig::new(c.d_model).with_epsilon(c.layer_norm_eps);
            let mut norm = config.init(&device);
            norm.gamma = parameter(start, &format!("{name}.weight"), &device)?;
            norm.beta = Some(parameter(start, &format!("{name}.bias"), &device)?);
            Ok(norm)
        };
        let linear = |name: String| -> Result<Linear, String> {
            Ok(Linear {
                weight: parameter(start, &format!("{name}.weight"), &device)?,
                bias: Some(parameter(start, &format!("{name}.bias"), &device)?),
            })
        };
        let mut blocks = Vec::new();
        for block in 0..c.n_layer {
            blocks.push(Block {
                norm1: norm(format!("h.{block}.ln_1"))?,
                qkv: linear(format!("h.{block}.attn.c_attn"))?,
                attn_out: linear(format!("h.{block}.attn.c_proj"))?,
                norm2: norm(format!("h.{block}.ln_2"))?,
                fc: linear(format!("h.{block}.mlp.c_fc"))?,
                mlp_out: linear(format!("h.{block}.mlp.c_proj"))?,
            });
        }
        let embedding = |name| -> Result<Embedding, String> {
            Ok(Embedding { weight: parameter(start, name, &device)? })
        };
        let model = Gpt {
            embedding: embedding("wte.weight")?,
            positions: embedding("wpe.weight")?,
            blocks,
            norm: norm("ln_f".into())?,
            heads: c.n_head,
        };
        let mut matrices = Matrices(Vec::new());
        model.visit(&mut matrices);
        let adamw = AdamWConfig::new()
            .with_beta_1(c.betas[0] as f32)
            .with_beta_2(c.betas[1] as f32)
            .with_epsilon(c.eps as f32);
        let decays = adamw.clone().with_weight_decay(c.weight_decay as f32).build();
        let optimizer = adamw.with_weight_decay(0.0).init().with_group(
            ParamGroup::from_ids(matrices.0),
            decays,
            None,
        );
        let sequence = c.tokens_per_sequence;
        Ok(Self { model: Some(model), optimizer, device, sequence, clip: c.clip })
    }

    fn step(&mut self, tokens: &[u32], targets: &[u32], rate: f64) -> Result<Found, String> {
        let model = self.model.take().ok_or("a step before has failed")?;
        let batch = tokens.len() / self.sequence;
        let tokens = ints(tokens, [batch, self.sequence], &self.device);
        let targets = ints(targets, [targets.len()], &self.device);
        let loss = CrossEntropyLoss::new(None, &self.device).forward(model.logits(tokens), targets);
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);

        let mut squares = Squares { grads: &grads, sum: None, missing: 0 };
        model.visit(&mut squares);
        if squares.missing > 0 {
            return Err(format!("{} parameters got no gradient", squares.missing));
        }
        let sum: f32 = squares.sum.ok_or("no parameters")?.into_scalar();
        let grad_norm = f64::from(sum).sqrt();
        // Burn clips the norm of each parameter by itself.
        let factor = clip_factor(self.clip, grad_norm);
        if factor < 1.0 {
            model.visit(&mut Scale { grads: &mut grads, factor });
        }
        self.model = Some(self.optimizer.step(rate, model, grads));
        let loss: f32 = loss.into_scalar();
        Ok(Found { loss: f64::from(loss), grad_norm })
    }
}

fn ints<const R: usize>(ids: &[u32], shape: [usize; R], device: &Device) -> Tensor<R, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}

impl Gpt {
    /// `[B T, V]` for `[B, T]`.
    fn logits(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let [batch, sequence] = tokens.dims();
        let positions = Tensor::arange(0..sequence as i64, &tokens.device()).unsqueeze::<2>();
        let mut x = self.embedding.forward(tokens) + self.positions.forward(positions);
        for block in &self.blocks {
            x = x.clone() + self.attention(block, block.norm1.forward(x));
            let hidden = gelu_approximate(block.fc.forward(block.norm2.forward(x.clone())));
            x = x + block.mlp_out.forward(hidden);
        }
        let [_, _, width] = x.dims();
        let x = self.norm.forward(x).reshape([batch * sequence, width]);
        x.matmul(self.embedding.weight.val().transpose())
    }

    fn attention(&self, block: &Block, x: Tensor<3>) -> Tensor<3> {
        let [batch, sequence, width] = x.dims();
        let qkv = block.qkv.forward(x);
        let shape = [batch, sequence, self.heads, width / self.heads];
        let head =
            |part: usize| qkv.clone().narrow(2, part * width, width).reshape(shape).swap_dims(1, 2);
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let y = attention(head(0), head(1), head(2), None, None, options);
        block.attn_out.forward(y.swap_dims(1, 2).reshape([batch, sequence, width]))
    }
}

/// Collects which parameters are matrices.
struct Matrices(Vec<ParamId>);

impl ModuleVisitor for Matrices {
    fn visit_float<const R: usize>(&mut self, param: &Param<Tensor<R>>) {
        if R == 2 {
            self.0.push(param.id);
        }
    }
}

/// Adds the squares of all gradients.
struct Squares<'a> {
    grads: &'a GradientsParams,
    sum: Option<Tensor<1>>,
    missing: usize,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const R: usize>(&mut self, param: &Param<Tensor<R>>) {
        let Some(grad) = self.grads.get::<R>(param.id) else {
            self.missing += 1;
            return;
        };
        let sum = grad.square().sum();
        self.sum = Some(match self.sum.take() {
            Some(before) => before + sum,
            None => sum,
        });
    }
}

/// Multiplies all gradients.
struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const R: usize>(&mut self, param: &Param<Tensor<R>>) {
        if let Some(grad) = self.grads.remove::<R>(param.id) {
            self.grads.register(param.id, grad.mul_scalar(self.factor));
        }
    }
}
