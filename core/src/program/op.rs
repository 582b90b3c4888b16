//! Operations: what one does, on which part of the model, in how many tiles.

use crate::params::{BlockParam, Param};
use crate::plan::Plan;
use core::ops::Range;

/// One of the matrices that products use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    Qkv,
    AttnOut,
    Fc,
    MlpOut,
    Head,
}

impl Matrix {
    /// Those that every block has.
    pub(crate) const OF_BLOCK: [Self; 4] = [Self::Qkv, Self::AttnOut, Self::Fc, Self::MlpOut];

    /// The tensor behind it.
    pub(crate) fn weight(self, plan: &Plan, block: usize) -> Param {
        if self == Self::Head { plan.table.head() } else { self.param(block) }
    }

    /// The tensor of its own.
    pub(crate) fn param(self, block: usize) -> Param {
        match self {
            Self::Qkv => Param::Block(block, BlockParam::Qkv),
            Self::AttnOut => Param::Block(block, BlockParam::AttnOut),
            Self::Fc => Param::Block(block, BlockParam::Fc),
            Self::MlpOut => Param::Block(block, BlockParam::MlpOut),
            Self::Head => Param::Head,
        }
    }

    /// The matrix that a tensor is, and its block; `None` for vectors and tables.
    pub(crate) fn of(param: Param) -> Option<(Self, usize)> {
        let matrix = match param {
            Param::Head => return Some((Self::Head, 0)),
            Param::Block(_, BlockParam::Qkv) => Self::Qkv,
            Param::Block(_, BlockParam::AttnOut) => Self::AttnOut,
            Param::Block(_, BlockParam::Fc) => Self::Fc,
            Param::Block(_, BlockParam::MlpOut) => Self::MlpOut,
            _ => return None,
        };
        let Param::Block(block, _) = param else { return None };
        Some((matrix, block))
    }

    /// Its bias, whether or not the model has biases.
    pub(crate) fn bias(self, block: usize) -> Option<Param> {
        Some(Param::Block(
            block,
            match self {
                Self::Qkv => BlockParam::QkvBias,
                Self::AttnOut => BlockParam::AttnOutBias,
                Self::Fc => BlockParam::FcBias,
                Self::MlpOut => BlockParam::MlpOutBias,
                Self::Head => return None,
            },
        ))
    }

    /// Inputs and outputs: `y = x W`.
    pub(crate) const fn shape(self, plan: &Plan) -> (usize, usize) {
        let c = &plan.config;
        match self {
            Self::Head => (c.d_model, c.vocab_size),
            _ => c.matrices()[self as usize],
        }
    }
}

/// Which norm: the first of a block, the second, or the final one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    First,
    Second,
    Final,
}

/// What an operation does. `Op::index` is its block (layer) unless said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Panels of a weight, or of its transpose.
    Pack(Matrix),
    PackTransposed(Matrix),
    // Forward, by row blocks but for attention.
    Embed,
    Norm(Norm),
    Qkv,
    /// Tiles are groups of heads of spans of sequences.
    Attention,
    AttnOut,
    Fc,
    MlpOut,
    /// Logits and losses of a group of rows (`index`), by row blocks.
    HeadLoss,
    /// The same with gradients of the logits and of the final norm's output.
    HeadLossGrad,
    /// Gradient of the output projection from a group of rows (`index`).
    HeadWeightGrad,
    // Backward, by row blocks.
    /// What was not kept of a block's activations.
    Remake,
    NormBack(Norm),
    MaskMlp,
    MlpInput,
    FcInput,
    MaskAttn,
    AttnInput,
    QkvInput,
    EmbedBack,
    /// As [`Kind::Attention`].
    AttentionBack,
    // Gradients of parameters.
    /// Of a weight, and of the bias beside it.
    WeightGrad(Matrix),
    NormGrad(Norm),
    /// Of the gains of the norms of heads, one tile.
    HeadNormGrad,
    /// What the gradients of the adapter of queries, keys and values want of those, by row blocks, where
    /// the product that goes back through them comes too late.
    AdapterBack,
    /// Of a matrix's adapter: tiles of A, then of B.
    AdapterGrad(Matrix),
    TokenTableGrad,
    PositionTableGrad,
    /// Of the weights of tokens before: tiles of those of one after those of the other.
    PreviousGrad,
    /// Sum of the losses, one tile.
    LossSum,
    /// Tiles of the whole gradient arena.
    Squares,
    /// The gradient's norm and the clip, one tile.
    Clip,
    /// Tiles of tensor number `index`.
    Update,
    /// The same by Muon: tiles are the matrices that the tensor is, side by side.
    Muon,
}

/// One operation of a step: the type of [`crate::Pool::Operations`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    pub(crate) kind: Kind,
    pub(crate) index: u32,
    pub(crate) tiles: u32,
}

impl Op {
    /// An operation of no tiles, to fill slots with.
    pub const EMPTY: Self = Self { kind: Kind::Embed, index: 0, tiles: 0 };

    /// One of zeros, for statics that are to take no room in a program's file.
    #[cfg(not(loom))]
    pub(crate) const ZERO: Self = Self { kind: Kind::Pack(Matrix::Qkv), index: 0, tiles: 0 };

    /// Names of the kinds of operations, for reports: see [`Op::kind`].
    pub const KINDS: [&str; 53] = [
        "pack qkv",
        "pack attn_out",
        "pack fc",
        "pack mlp_out",
        "pack head",
        "pack qkv^T",
        "pack attn_out^T",
        "pack fc^T",
        "pack mlp_out^T",
        "pack head^T",
        "embed",
        "norm1",
        "norm2",
        "final norm",
        "qkv",
        "attention",
        "attn_out",
        "fc",
        "mlp_out",
        "logits and loss",
        "logits, loss and dlogits",
        "head dW",
        "norm1 backward",
        "norm2 backward",
        "final norm backward",
        "mlp_out dropout backward",
        "mlp_out dX",
        "fc dX",
        "attn_out dropout backward",
        "attn_out dX",
        "qkv dX",
        "embed backward",
        "attention backward",
        "qkv dW",
        "attn_out dW",
        "fc dW",
        "mlp_out dW",
        "norm gain and bias gradient",
        "token table gradient",
        "position table gradient",
        "loss sum",
        "gradient norm",
        "clip",
        "optimizer",
        "recompute",
        "head norm gain gradient",
        "qkv adapter backward",
        "qkv adapter dA, dB",
        "attn_out adapter dA, dB",
        "fc adapter dA, dB",
        "mlp_out adapter dA, dB",
        "muon",
        "previous token gradient",
    ];

    /// Which of [`Op::KINDS`] it is.
    #[must_use]
    pub const fn kind(self) -> usize {
        match self.kind {
            Kind::Pack(matrix) => matrix as usize,
            Kind::PackTransposed(matrix) => 5 + matrix as usize,
            Kind::Embed => 10,
            Kind::Norm(norm) => 11 + norm as usize,
            Kind::Qkv => 14,
            Kind::Attention => 15,
            Kind::AttnOut => 16,
            Kind::Fc => 17,
            Kind::MlpOut => 18,
            Kind::HeadLoss => 19,
            Kind::HeadLossGrad => 20,
            Kind::HeadWeightGrad => 21,
            Kind::NormBack(norm) => 22 + norm as usize,
            Kind::MaskMlp => 25,
            Kind::MlpInput => 26,
            Kind::FcInput => 27,
            Kind::MaskAttn => 28,
            Kind::AttnInput => 29,
            Kind::QkvInput => 30,
            Kind::EmbedBack => 31,
            Kind::AttentionBack => 32,
            Kind::WeightGrad(matrix) => 33 + matrix as usize,
            Kind::NormGrad(_) => 37,
            Kind::TokenTableGrad => 38,
            Kind::PositionTableGrad => 39,
            Kind::LossSum => 40,
            Kind::Squares => 41,
            Kind::Clip => 42,
            Kind::Update => 43,
            Kind::Remake => 44,
            Kind::HeadNormGrad => 45,
            Kind::AdapterBack => 46,
            Kind::AdapterGrad(matrix) => 47 + matrix as usize,
            Kind::Muon => 51,
            Kind::PreviousGrad => 52,
        }
    }

    /// Whether they are equal.
    pub(crate) const fn is(self, other: Self) -> bool {
        let Self { kind, index, tiles } = self;
        // Norms, whose gradients have one name, have operations of their own.
        let same_kind = match (kind, other.kind) {
            (Kind::NormGrad(norm), Kind::NormGrad(other)) => norm as usize == other as usize,
            _ => self.kind() == other.kind(),
        };
        same_kind && index == other.index && tiles == other.tiles
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::KINDS[self.kind()]
    }

    /// The transformer block that it belongs to, if it belongs to one.
    #[must_use]
    pub const fn layer(self) -> Option<u32> {
        match self.kind {
            Kind::Pack(Matrix::Head)
            | Kind::PackTransposed(Matrix::Head)
            | Kind::Embed
            | Kind::Norm(Norm::Final)
            | Kind::HeadLoss
            | Kind::HeadLossGrad
            | Kind::HeadWeightGrad
            | Kind::NormBack(Norm::Final)
            | Kind::EmbedBack
            | Kind::NormGrad(Norm::Final)
            | Kind::TokenTableGrad
            | Kind::PositionTableGrad
            | Kind::PreviousGrad
            | Kind::LossSum
            | Kind::Squares
            | Kind::Clip
            | Kind::Update
            | Kind::Muon => None,
            _ => Some(self.index),
        }
    }

    /// Where it writes gradients of what is trained; `None` if it does not.
    pub(crate) fn gradients(
        self,
        plan: &Plan,
    ) -> Option<impl Iterator<Item = Range<usize>> + use<'_>> {
        use BlockParam::{Norm1Bias, Norm1Gain, Norm2Bias, Norm2Gain};
        let block = self.index as usize;
        let of_block = |param| Param::Block(block, param);
        let params = match self.kind {
            Kind::AdapterGrad(matrix) => {
                let factors = plan.adapters()?.factors(matrix, block)?;
                let range = |i: usize| factors[i].offset..factors[i].offset + factors[i].len();
                return Some([Some(range(0)), Some(range(1))].into_iter().flatten());
            }
            Kind::WeightGrad(matrix) => [Some(matrix.weight(plan, block)), matrix.bias(block)],
            Kind::HeadWeightGrad => [Some(plan.table.head()), None],
            Kind::NormGrad(Norm::First) => [Some(of_block(Norm1Gain)), Some(of_block(Norm1Bias))],
            Kind::NormGrad(Norm::Second) => [Some(of_block(Norm2Gain)), Some(of_block(Norm2Bias))],
            Kind::NormGrad(Norm::Final) => [Some(Param::FinalGain), Some(Param::FinalBias)],
            Kind::HeadNormGrad => {
                [BlockParam::QueryNormGain, BlockParam::KeyNormGain].map(of_block).map(Some)
            }
            Kind::TokenTableGrad => [Some(Param::TokenTable), None],
            Kind::PreviousGrad => [Some(Param::Previous), None],
            Kind::PositionTableGrad => [Some(Param::PositionTable), None],
            _ => return None,
        };
        let range = |param| plan.table.spec(param).map(|spec| spec.range());
        Some(params.map(|param| param.and_then(range)).into_iter().flatten())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let matrices = [Matrix::Qkv, Matrix::AttnOut, Matrix::Fc, Matrix::MlpOut, Matrix::Head];
        let norms = [Norm::First, Norm::Second, Norm::Final];
        let kinds = matrices.into_iter().flat_map(|m| [Kind::Pack(m), Kind::PackTransposed(m)]);
        let kinds = kinds.chain(norms.into_iter().flat_map(|n| [Kind::Norm(n), Kind::NormBack(n)]));
        let kinds = kinds.chain(Matrix::OF_BLOCK.map(Kind::WeightGrad));
        let kinds = kinds.chain(Matrix::OF_BLOCK.map(Kind::AdapterGrad));
        let kinds = kinds.chain([
            Kind::Embed,
            Kind::Qkv,
            Kind::Attention,
            Kind::AttnOut,
            Kind::Fc,
            Kind::MlpOut,
            Kind::HeadLoss,
            Kind::HeadLossGrad,
            Kind::HeadWeightGrad,
            Kind::Remake,
            Kind::MaskMlp,
            Kind::MlpInput,
            Kind::FcInput,
            Kind::MaskAttn,
            Kind::AttnInput,
            Kind::QkvInput,
            Kind::EmbedBack,
            Kind::AttentionBack,
            Kind::NormGrad(Norm::First),
            Kind::HeadNormGrad,
            Kind::AdapterBack,
            Kind::TokenTableGrad,
            Kind::PositionTableGrad,
            Kind::PreviousGrad,
            Kind::LossSum,
            Kind::Squares,
            Kind::Clip,
            Kind::Update,
            Kind::Muon,
        ]);
        let mut seen = [false; Op::KINDS.len()];
        for kind in kinds {
            let op = Op { kind, index: 3, tiles: 1 };
            assert!(!seen[op.kind()], "{}", op.name());
            seen[op.kind()] = true;
            // And is itself alone.
            for other in [op, Op { index: 2, ..op }, Op { tiles: 2, ..op }, Op::EMPTY] {
                assert_eq!(op.is(other), op == other, "{op:?} {other:?}");
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        let op = |kind| Op { kind, index: 3, tiles: 1 };
        assert!(!op(Kind::NormGrad(Norm::First)).is(op(Kind::NormGrad(Norm::Final))));
        assert_eq!(op(Kind::AttnInput).name(), "attn_out dX");
        assert_eq!(op(Kind::NormBack(Norm::Final)).name(), "final norm backward");
        assert_eq!(op(Kind::Pack(Matrix::Head)).name(), "pack head");
        assert_eq!((op(Kind::Fc).layer(), op(Kind::Update).layer()), (Some(3), None));
    }
}
