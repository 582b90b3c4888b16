//! An epilogue of each kind, for products that are compared with one another.

use super::Grid;
use cllm_kernels::{Dropout, Epilogue, OperandMut};

/// Kinds of epilogue, by number.
pub(crate) const EPILOGUES: usize = 8;

/// What an epilogue reads.
pub(crate) struct More {
    pub(crate) bias: Grid,
    pub(crate) other: Grid,
}

/// Epilogue `kind`; `pre` is what it writes beside the result.
pub(crate) fn epilogue<'a>(kind: usize, more: &'a More, pre: OperandMut<'a>) -> Epilogue<'a> {
    let bias = Some(more.bias.slice());
    let dropout = Dropout::new(0.3, 11, 5, 2).map(|mask| (mask, 1000));
    match kind {
        0 => Epilogue::None,
        1 => Epilogue::Bias(more.bias.slice()),
        2 => Epilogue::Gelu { bias, pre },
        3 => Epilogue::Residual { bias, residual: more.other.view(), dropout },
        4 => Epilogue::Residual { bias: None, residual: more.other.view(), dropout: None },
        5 => Epilogue::GeluGrad { pre },
        6 => Epilogue::Relu2 { bias, pre },
        _ => Epilogue::Relu2Grad { pre },
    }
}
