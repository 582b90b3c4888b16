//! Checkpoints. Their checksums refuse nearly all that a fuzzer makes, so each input is read a second time with the
//! right ones.

use cllm::checkpoint::Meta;
use cllm_core::checkpoint::{Checkpoint, MAGIC, SliceSink, encode, encoded_len};
use cllm_core::{AdapterTable, ParamTable};

/// Most values of a model whose weights are read: more would take a while, and there are no bytes for them.
const MOST: usize = 1 << 20;

/// A checkpoint.
pub(crate) fn target(data: &[u8]) -> bool {
    let as_it_is = look(data);
    look(&with_sums(data)) || as_it_is
}

fn look(bytes: &[u8]) -> bool {
    let whole = Checkpoint::parse(bytes);
    let of_model = Checkpoint::parse_model(bytes);
    let Ok(found) = whole else {
        // Damage of the optimizer's state alone does not matter to who only runs the model.
        if let Ok(found) = of_model {
            assert!(!found.has_moments());
        }
        return false;
    };
    let of_model = of_model.expect("a checkpoint that is good is good for use");
    assert_eq!(of_model.header(), found.header());
    let _ = serde_json::from_slice::<Meta>(found.meta());
    let header = found.header();
    let table = ParamTable::new(&header.config).expect("a model that was taken");
    let arena = match &header.adapters {
        None => table.arena_len(),
        Some(adapters) => {
            let table = AdapterTable::new(&header.config, adapters);
            table.expect("adapters that were taken").arena_len()
        }
    };
    assert_eq!(found.parameter_bytes().as_ptr(), of_model.parameter_bytes().as_ptr());
    if arena > MOST {
        return false;
    }
    let mut weights = vec![0.0; arena];
    found.read_parameters(&mut weights);
    // Written without moments, it is a checkpoint of the same weights and the same words.
    let length = encoded_len(header, found.meta().len(), None).expect("a length");
    let mut again = vec![0; length];
    let mut sink = SliceSink::new(&mut again);
    encode(header, found.meta(), &weights, None, &mut sink).expect("room for all");
    assert_eq!(sink.written(), length);
    let again = Checkpoint::parse(&again).expect("a checkpoint that was written");
    assert_eq!((again.header(), again.meta()), (header, found.meta()));
    assert_eq!(again.parameter_bytes(), found.parameter_bytes());
    true
}

/// The same with the checksums that its header and sections should have, as far as they can be told apart.
#[must_use]
pub fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    // Magic, version, length of the header.
    let preamble = MAGIC.len() + 8;
    let Some(length) = word(&bytes, MAGIC.len() + 4) else { return bytes };
    let Some(mut at) = sum(&mut bytes, preamble, preamble.saturating_add(length as usize)) else {
        return bytes;
    };
    // Tag, zero, length of the payload.
    while let (Some(low), Some(0)) = (word(&bytes, at + 8), word(&bytes, at + 12)) {
        match sum(&mut bytes, at, at.saturating_add(16).saturating_add(low as usize)) {
            Some(next) => at = next,
            None => break,
        }
    }
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Puts the checksum of a range behind it, and says where the next one begins.
fn sum(bytes: &mut [u8], from: usize, to: usize) -> Option<usize> {
    let right = crc32fast::hash(bytes.get(from..to)?);
    bytes.get_mut(to..to + 4)?.copy_from_slice(&right.to_le_bytes());
    Some(to + 4)
}
