//! A checkpoint becomes a folder that llm.c trains from, with the names that its trainers look for.
//!
//! ```text
//! gpt2_124M.bin        256 words: magic, version, sizes; then the tensors, each kind of all layers
//!                      together; version 3 has f32, version 5 bf16
//! gpt2_tokenizer.bin   256 words: magic, version, ids, end of text; then the length and the bytes of each id
//! ```
//!
//! Little-endian. A matrix has a row for each output, which the core has for each input; the table of
//! tokens is padded with rows of zeros. llm.c has one architecture: what differs is refused, and biases
//! that a model lacks are of zeros. Format: `gpt2_build_from_checkpoint` and `tokenizer_init` of llm.c.

use std::io::{self, Write};
use std::path::Path;

use cllm_core::{Activation, Architecture, ModelConfig, Param};

use crate::error::{Error, Result};
use crate::exchange::{
    Element, ExportSettings, Family, WithValues, check_held, row_by_output, with_values,
};
use crate::files::{self, AtomicFile};
use crate::model;
use crate::tokenizer::Tokenizer;
use crate::trained::Trained;

/// File of the weights.
const WEIGHTS: &str = "gpt2_124M.bin";
/// File of the tokenizer.
const TOKENIZER: &str = "gpt2_tokenizer.bin";
const WEIGHTS_MAGIC: u32 = 20_240_326;
const TOKENIZER_MAGIC: u32 = 20_240_328;
/// The version that names its end of text.
const TOKENIZER_VERSION: u32 = 2;
/// Words of a header.
const HEADER: usize = 256;
/// llm.c wants rows of the table of tokens in multiples of this.
const PADDED: usize = 128;
/// What llm.c adds to variances.
const NORM_EPS: f32 = 1e-5;

/// Exports a model.
///
/// # Errors
/// A missing or damaged checkpoint or tokenizer; a model or tokenizer that llm.c does not have, weights
/// that are not numbers of the wanted type; a folder that has such files or cannot be written.
pub fn export(settings: &ExportSettings) -> Result<()> {
    let version = match settings.element {
        Element::F32 => 3,
        Element::Bf16 => 5,
        Element::F16 => {
            return Err(Error::usage("--weights f16: llm.c has f32 and bf16 only"));
        }
    };
    let trained = Trained::open(&settings.checkpoint)?;
    let config = trained.config();
    check(config).map_err(|e| Error::failure(format!("{}: {e}", settings.checkpoint.display())))?;
    let out = &settings.out;
    for name in [WEIGHTS, TOKENIZER] {
        files::refuse_to_replace(&out.join(name))?;
    }
    let tokenizer = if trained.has_tokenizer() {
        let tokens = tokenizer_bytes(&trained.tokenizer(None)?);
        Some(tokens.map_err(|e| Error::failure(format!("{}: {e}", trained.dir().display())))?)
    } else {
        None
    };
    let parameters = trained.parameters()?;
    files::create_dir(out)?;
    let tensors = with_values(Family::Gpt2, config, &parameters).map_err(model::config_error)?;
    // First: if the weights cannot be had nothing is in the way of another try.
    write(&out.join(WEIGHTS), config, version, &tensors, settings.element)?;
    match tokenizer {
        Some(tokenizer) => files::write_atomic(&out.join(TOKENIZER), &tokenizer),
        None => Ok(()),
    }
}

/// Refuses what llm.c computes otherwise.
fn check(c: &ModelConfig) -> core::result::Result<(), String> {
    if c.arch.activation == Activation::Relu2 && Family::of(c) == Ok(Family::Gpt2) {
        return Err(
            "its feed-forward layers have --activation relu2, and llm.c has GELU alone; take \
                    --format safetensors"
                .into(),
        );
    }
    if let Some(cap) = c.arch.logit_softcap {
        return Err(format!("its logits are capped (--logit-softcap {cap}), and llm.c's are not"));
    }
    if c.arch.previous_tokens > 0 {
        return Err(format!(
            "each token has the embeddings of those before it (--previous-tokens {}), and llm.c adds none",
            c.arch.previous_tokens
        ));
    }
    let scale = c.arch.embedding_scale;
    if scale != 1.0 {
        return Err(format!(
            "its embeddings are multiplied (--embedding-scale {scale}), and llm.c's are not"
        ));
    }
    if c.arch != Architecture::GPT2 {
        return Err(
            "its blocks are not made of GPT-2's parts, and llm.c has no others; take --format \
                    safetensors or gguf"
                .into(),
        );
    }
    if !c.tied {
        return Err(
            "its output projection is not its table of tokens, which llm.c has as one".into()
        );
    }
    if c.d_ff != 4 * c.d_model {
        return Err(format!(
            "its feed-forward layer is {} wide, llm.c's always four times the model's width of {}",
            c.d_ff, c.d_model
        ));
    }
    if c.norm_eps != NORM_EPS {
        return Err(format!("its norms add {} to the variance, llm.c's {NORM_EPS}", c.norm_eps));
    }
    Ok(())
}

/// A header that begins with these words.
fn header(words: &[u32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(HEADER * size_of::<u32>(), 0);
    bytes
}

/// Writes the file of weights: all of it or nothing.
fn write(
    path: &Path,
    c: &ModelConfig,
    version: u32,
    tensors: &[WithValues<'_>],
    element: Element,
) -> Result<()> {
    let io = |e: io::Error| Error::io("write", path, &e);
    let mut file = AtomicFile::create(path)?;
    let padded = c.vocab_size.next_multiple_of(PADDED);
    let sizes = [c.block_size, c.vocab_size, c.n_layer, c.n_head, c.d_model, padded];
    // No dimension of a model exceeds 32 bits.
    let mut words = vec![WEIGHTS_MAGIC, version];
    words.extend(sizes.map(|size| size as u32));
    file.write_all(&header(&words)).map_err(io)?;
    let mut tensors: Vec<_> = tensors.iter().collect();
    // Each kind of all layers together; the table's order of a block's tensors is llm.c's.
    tensors.sort_by_key(|(spec, _)| match spec.param {
        Param::TokenTable => (0, 0),
        Param::PositionTable | Param::Previous => (1, 0),
        Param::Block(layer, param) => (2 + param as usize, layer),
        Param::FinalGain => (usize::MAX - 2, 0),
        Param::FinalBias => (usize::MAX - 1, 0),
        Param::Head => (usize::MAX, 0),
    });
    for tensor in tensors {
        tensor_to(&mut file, path, tensor, element)?;
        if tensor.0.param == Param::TokenTable {
            let zeros = vec![0; (padded - c.vocab_size) * c.d_model * element.bytes()];
            file.write_all(&zeros).map_err(io)?;
        }
    }
    file.commit()
}

/// Appends a tensor, a row for each output.
fn tensor_to(
    file: &mut AtomicFile,
    path: &Path,
    (spec, values): &WithValues<'_>,
    element: Element,
) -> Result<()> {
    let table = matches!(spec.param, Param::TokenTable | Param::PositionTable);
    let transposed = !spec.is_vector() && !table;
    let (rows, cols) = if transposed { (spec.cols, spec.rows) } else { (spec.rows, spec.cols) };
    let (mut row, mut bytes) = (vec![0.0; cols], Vec::new());
    for number in 0..rows {
        row_by_output(spec, *values, transposed, number, &mut row);
        check_held(&row, element, &spec.name())?;
        bytes.clear();
        element.write(&row, &mut bytes);
        file.write_all(&bytes).map_err(|e| Error::io("write", path, &e))?;
    }
    Ok(())
}

/// The file of a tokenizer, which can only decode.
fn tokenizer_bytes(tokenizer: &Tokenizer) -> core::result::Result<Vec<u8>, String> {
    let (ids, end) = (tokenizer.vocab_size() as u32, tokenizer.end_of_text());
    let mut file = header(&[TOKENIZER_MAGIC, TOKENIZER_VERSION, ids, end]);
    for id in 0..ids {
        let mut token = tokenizer.decode_bytes(&[id]);
        if id == end {
            token = tokenizer.end_of_text_name().into_bytes();
        }
        if token.is_empty() {
            // A special token, or a hole among the ids. llm.c has no empty ones.
            token = format!("<|{id}|>").into_bytes();
        }
        let length = u8::try_from(token.len())
            .map_err(|_| format!("token {id} has {} bytes, in llm.c at most 255", token.len()))?;
        file.push(length);
        file.extend(token);
    }
    Ok(file)
}
