//! What a set of sizes was measured for: the machine, the kernels, and the model's shape.

use cllm_core::{BatchShape, Kernels, ModelConfig};
use core::fmt;
use serde::Serialize;

/// What has to be the same for a measured set to be used. The number of layers is among it, for
/// whether weights are packed on the way depends on how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Key {
    /// The CPU by its own name and signature.
    pub cpu: String,
    /// Instruction set of the kernels.
    pub isa: String,
    /// What the operands of products are rounded to.
    pub dtype: String,
    /// Workers that tiles are for.
    pub threads: usize,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Width of the model.
    pub n_embd: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Ids of the vocabulary.
    pub vocab_size: usize,
    /// Tokens of a micro-batch.
    pub rows: usize,
}

impl Key {
    /// The key of steps of `config` on batches of `batch`, cut for `threads` workers, on this
    /// machine.
    #[must_use]
    pub fn new(config: &ModelConfig, batch: BatchShape, threads: usize, kernels: &Kernels) -> Self {
        Self {
            cpu: cpu_name(),
            isa: kernels.set().isa.name().to_owned(),
            dtype: kernels.dtype().name().to_owned(),
            threads,
            n_layer: config.n_layer,
            n_embd: config.d_model,
            d_ff: config.d_ff,
            vocab_size: config.vocab_size,
            rows: batch.sequences.saturating_mul(batch.tokens),
        }
    }

    /// All parts by the names that the file has for them, in its order.
    pub(super) fn parts(&mut self) -> [(&'static str, Part<'_>); 9] {
        let Self { cpu, isa, dtype, threads, n_layer, n_embd, d_ff, vocab_size, rows } = self;
        [
            ("cpu", Part::Text(cpu)),
            ("isa", Part::Text(isa)),
            ("dtype", Part::Text(dtype)),
            ("threads", Part::Number(threads)),
            ("n_layer", Part::Number(n_layer)),
            ("n_embd", Part::Number(n_embd)),
            ("d_ff", Part::Number(d_ff)),
            ("vocab_size", Part::Number(vocab_size)),
            ("rows", Part::Number(rows)),
        ]
    }

    /// What of `other` is not as here, as the file has it: `threads = 4`, for one.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let (mut here, mut there) = (self.clone(), other.clone());
        let pairs = here.parts().into_iter().zip(there.parts());
        let pairs = pairs.filter(|((_, here), (_, there))| here != there);
        pairs.map(|(_, (name, there))| format!("{name} = {there}")).collect()
    }
}

/// A part of a [`Key`], to read or to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a mut String),
    Number(&'a mut usize),
}

/// As TOML has it.
impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => {
                write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            }
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, isa, dtype, threads, n_layer, n_embd, d_ff, vocab_size, rows } = self;
        write!(
            f,
            "{cpu}: {isa}, {dtype}, {threads} thread(s); {n_layer} layer(s), width {n_embd}, \
             feed-forward {d_ff}, vocabulary {vocab_size}, {rows} tokens"
        )
    }
}

/// The CPU's name as it tells it, and its signature (family, model, stepping): virtual machines
/// may give many CPUs one name.
#[must_use]
pub fn cpu_name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::__cpuid;
        const FIRST: u32 = 0x8000_0002;
        const LAST: u32 = 0x8000_0004;
        let mut bytes = Vec::new();
        if __cpuid(0x8000_0000).eax >= LAST {
            for leaf in FIRST..=LAST {
                let answer = __cpuid(leaf);
                for word in [answer.eax, answer.ebx, answer.ecx, answer.edx] {
                    bytes.extend(word.to_le_bytes());
                }
            }
        }
        printable(&bytes, __cpuid(1).eax)
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

/// A name padded with zeros and spaces, in words with one space between.
#[cfg(target_arch = "x86_64")]
fn printable(name: &[u8], signature: u32) -> String {
    let text: String = name
        .iter()
        .map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' })
        .collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    let name = if words.is_empty() { "x86-64".to_owned() } else { words.join(" ") };
    format!("{name} ({signature:x})")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_padding() {
        assert_eq!(printable(b"  AMD EPYC  7R13\0\0\0", 0xa0_0f11), "AMD EPYC 7R13 (a00f11)");
        assert_eq!(printable(&[0; 48], 0x1), "x86-64 (1)");
        assert_eq!(cpu_name(), cpu_name());
    }
}
