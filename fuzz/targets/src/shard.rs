//! Token shards, the checksums beside them, and what their folder says of itself. A shard that is opened can be read to its end, or is damaged; without
//! checksums it is never, and what is written of its tokens is the same shard.

use std::fs;

use cllm::data::prepare::{META_FILE, Meta};
use cllm::data::shard::{HEADER_BYTES, Shard, ShardWriter, is_shard};
use cllm::data::stream::TokenStream;
use cllm::error::Result;

use crate::files::{Folder, parts};

/// A shard, its checksums and `meta.json`.
pub(crate) fn target(data: &[u8]) -> bool {
    let [shard, sums, meta] = parts(data);
    let folder = Folder::new();
    folder.put(META_FILE, meta);
    if let Some(meta) = Meta::load(folder.path()) {
        assert!(meta.vocab_size > 0 && meta.train_tokens.checked_add(meta.val_tokens).is_some());
        let _ = (meta.is_complete(), meta.is_of_stdin());
    }
    let path = folder.put("train_000000.bin", shard);
    if !path.exists() {
        return false;
    }
    for sums in [sums.to_vec(), with_sum(sums)] {
        folder.put("train_000000.bin.sums", &sums);
        if let Ok(shard) = Shard::open(&path) {
            let _ = ids(&shard);
        }
    }
    let _ = fs::remove_file(folder.at("train_000000.bin.sums"));
    let Ok(opened) = Shard::open(&path) else { return false };
    assert!(is_shard(&path));
    let ids = ids(&opened).expect("without checksums nothing is damaged");
    let largest = ids.iter().copied().max().unwrap_or(0);
    if let Ok(stream) = TokenStream::open(&[path])
        && !ids.is_empty()
    {
        let mut again = vec![0; ids.len()];
        let checked = stream.fill_checked(0, &mut again, 300);
        assert_eq!(checked.is_ok(), largest < 300);
    }
    let is_wide =
        shard.len() as u64 - HEADER_BYTES as u64 == 4 * opened.len() && !opened.is_empty();
    let vocab = if is_wide { 1 << 17 } else { 1 << 16 };
    let mut writer = ShardWriter::create(&folder.at("again.bin"), vocab).expect("a new shard");
    writer.write(&ids).expect("tokens that were read");
    writer.finish().expect("a shard that is whole");
    let again = Shard::open(&folder.at("again.bin")).expect("a shard that was written");
    assert_eq!(self::ids(&again), Ok(ids));
    true
}

fn ids(shard: &Shard) -> Result<Vec<u32>> {
    let mut all = vec![0; shard.len() as usize];
    shard.fill(0, &mut all)?;
    // From the middle on, in another block.
    let half = all.len() / 2;
    let mut some = vec![0; (all.len() - half).min(1000)];
    shard.fill(half as u64, &mut some)?;
    assert!(all[half..].starts_with(&some));
    Ok(all)
}

/// Sums with the right checksum of themselves, so that what they say is looked at.
fn with_sum(sums: &[u8]) -> Vec<u8> {
    let mut sums = sums.to_vec();
    if let Some(at) = sums.len().checked_sub(4) {
        let sum = crc32fast::hash(&sums[..at]);
        sums[at..].copy_from_slice(&sum.to_le_bytes());
    }
    sums
}
