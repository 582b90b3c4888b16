//! The reference data set: the same bytes each time, of the right size, and
//! the same under its tokenizer as in its shards.

use std::fs;
use std::path::Path;

use cllm::data::loader::Dataset;
use cllm::data::reference::{Summary, is_complete, write_reference, write_scaled};
use cllm::data::stream::{TokenStream, find_shards};
use cllm::tokenizer::Tokenizer;

/// SHA-256 of the files of `write_reference`.
const EXPECTED: [(&str, &str); 5] = [
    ("reference.txt", "d93ed74a3352f5cfc53d5898ab5aa28ff687b73b403bab1d0133062375934fdd"),
    ("tokenizer.json", "52d38e69c296ab0d794c497fa87690150d3c87724c1cb36150da71c81c7fb768"),
    ("train_000000.bin", "0e170e2ad8b92a68427ca73a2418432b1d35a38f5f0dc2477c8b28dc5f686c32"),
    ("val_000000.bin", "0568e69e4fe00f702f1ccd54ab8dec1a59078abc8259ad9cc127b37dfcfe535d"),
    ("meta.json", "7a190dcd67ce21245f7bd3acd25b3a5e63de54a1e28d1da459001ed96d02d3b4"),
];

fn tokens(dir: &Path, split: &str) -> Vec<u32> {
    let stream = TokenStream::open(&find_shards(dir, split).unwrap()).unwrap();
    let mut tokens = vec![0; stream.len() as usize];
    stream.fill(0, &mut tokens).unwrap();
    tokens
}

#[test]
fn the_whole_data_set_has_its_size_and_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    let summary: Summary = write_reference(dir.path()).unwrap();
    println!("{summary:#?} in {:?}", started.elapsed());
    assert_eq!(summary.batches, 2272);
    assert!((72_500_000..73_500_000).contains(&summary.bytes), "{} bytes", summary.bytes);
    assert!((9_306_240..9_310_209).contains(&summary.train_tokens), "{}", summary.train_tokens);
    assert_eq!(summary.bytes, fs::metadata(dir.path().join("reference.txt")).unwrap().len());
    assert!(is_complete(dir.path()));
    let stream = TokenStream::open(&find_shards(dir.path(), "train").unwrap()).unwrap();
    let data = Dataset::open(stream, 5000, 128, 1337).unwrap();
    assert_eq!(data.sequences_per_epoch() / 32, 2272);
    let expected = EXPECTED.map(|(file, hash)| (file.to_owned(), hash.to_owned()));
    assert_eq!(summary.sha256, expected, "the data set has changed");
}

#[test]
fn a_small_one_is_the_same_twice_and_under_its_tokenizer() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let summary = write_scaled(a.path(), 20, 2).unwrap();
    assert_eq!(summary, write_scaled(b.path(), 20, 2).unwrap());
    // Over a finished folder as well as into a new one.
    assert_eq!(summary, write_scaled(a.path(), 20, 2).unwrap());

    let tokenizer = Tokenizer::load(a.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 5000);
    let text = fs::read_to_string(a.path().join("reference.txt")).unwrap();
    let all = [tokens(a.path(), "train"), tokens(a.path(), "val")].concat();
    assert_eq!(tokenizer.decode(&all), text, "decoding gives the text");
    let mut encoded = Vec::new();
    for document in all.split(|&id| id == tokenizer.end_of_text()).skip(1) {
        encoded.push(tokenizer.end_of_text());
        let ids = tokenizer.encode(tokenizer.decode(document).as_bytes()).unwrap();
        assert!((50..4000).contains(&ids.len()), "a document of {} tokens", ids.len());
        encoded.extend(ids);
    }
    assert!(encoded == all, "encoding gives the shards");
    let odd = "A prompt of a user: 日本語, <|endoftext|>\n";
    assert_eq!(tokenizer.decode(&tokenizer.encode(odd.as_bytes()).unwrap()), odd);
}

/// Entropy in nats a token of what `model` counts, over the second half, from
/// counts over the first half, mixed with the uniform distribution.
fn nats_of_context(tokens: &[u32], context: usize) -> f64 {
    use std::collections::HashMap;
    let (train, test) = tokens.split_at(tokens.len() * 9 / 10);
    let mut counts: HashMap<&[u32], HashMap<u32, f64>> = HashMap::new();
    for w in train.windows(context + 1) {
        *counts.entry(&w[..context]).or_default().entry(w[context]).or_default() += 1.0;
    }
    let nats: f64 = test
        .windows(context + 1)
        .map(|w| {
            let p = counts.get(&w[..context]).map_or(0.0, |c| {
                c.get(&w[context]).copied().unwrap_or(0.0) / c.values().sum::<f64>()
            });
            -(0.95 * p + 0.05 / 5000.0).ln()
        })
        .sum();
    nats / test.len() as f64
}

#[test]
fn there_is_something_to_learn_and_it_is_not_soon_learnt() {
    let dir = tempfile::tempdir().unwrap();
    write_scaled(dir.path(), 120, 1).unwrap();
    let all = tokens(dir.path(), "train");
    let alone = nats_of_context(&all, 0);
    let after_one = nats_of_context(&all, 1);
    println!("nats a token: {alone:.3} by frequency, {after_one:.3} after one word");
    let used: std::collections::BTreeSet<u32> = all.iter().copied().collect();
    println!("{} identifiers used", used.len());
    assert!((4.5..7.5).contains(&alone), "{alone}");
    assert!(after_one < alone - 1.0, "the word before must help: {after_one} of {alone}");
    assert!(after_one > 2.0, "and not say everything: {after_one}");
    assert!(used.len() > 4500, "{} of 5000 identifiers are used", used.len());
}
