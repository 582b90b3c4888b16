//! Text on disk to batches: the whole path, and what stops it.

use std::fs;
use std::path::{Path, PathBuf};

use cllm::data::loader::{Dataset, Validation};
use cllm::data::prepare::{self, META_FILE, Meta, Request, current, prepare};
use cllm::data::source::{Input, Source, discover};
use cllm::data::stream::{TokenStream, find_shards};
use cllm::tokenizer::Tokenizer;

fn sources(paths: &[PathBuf]) -> Vec<Source> {
    let Input::Text(sources) = discover(paths).unwrap() else { panic!("shards") };
    sources
}

/// Three documents of 10, 20 and 30 bytes in two files.
fn small(dir: &Path) -> Request {
    let text = dir.join("a.txt");
    fs::write(&text, [b'a'; 10]).unwrap();
    let lines = dir.join("b.jsonl");
    let line = |c: char, n: usize| format!("{{\"text\":\"{}\"}}\n", c.to_string().repeat(n));
    fs::write(&lines, line('b', 20) + &line('c', 30)).unwrap();
    Request::new(sources(&[text, lines]))
}

fn expected() -> Vec<u32> {
    let document = |c: u8, n| [vec![256], vec![u32::from(c); n]].concat();
    [document(b'a', 10), document(b'b', 20), document(b'c', 30)].concat()
}

fn split(dir: &Path, name: &str) -> Vec<u32> {
    let paths = find_shards(dir, name).unwrap();
    if paths.is_empty() {
        return Vec::new();
    }
    let stream = TokenStream::open(&paths).unwrap();
    let mut tokens = vec![0; stream.len() as usize];
    stream.fill(0, &mut tokens).unwrap();
    tokens
}

#[test]
fn any_split_into_any_shards_keeps_every_token() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut request = small(dir.path());
    for shard_tokens in [1, 7, 31, 63, 64, 1000] {
        for (val_fraction, tail) in [(0.0, 0), (0.1, 6), (0.5, 31), (0.999, 62)] {
            (request.shard_tokens, request.val_fraction) = (shard_tokens, val_fraction);
            let meta = prepare(&request, &Tokenizer::Bytes, &out).unwrap();
            let (train, val) = (split(&out, "train"), split(&out, "val"));
            assert_eq!(val.len(), tail, "{shard_tokens} {val_fraction}");
            assert_eq!([train, val].concat(), expected(), "{shard_tokens} {val_fraction}");
            assert_eq!((meta.bytes, meta.documents), (60, 3));
            assert_eq!((meta.train_tokens, meta.val_tokens), (63 - tail as u64, tail as u64));
            let memory = prepare::encode_in_memory(&request, &Tokenizer::Bytes).unwrap();
            assert_eq!((memory.0.len(), memory.1.len()), (63 - tail as u64, tail as u64));
        }
    }
    let left = fs::read_dir(&out).unwrap().filter(|e| {
        e.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "tmp")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn validation_may_have_sources_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut request = small(dir.path());
    request.validation = vec![Source::from_memory("v", *b"xyz")];
    prepare(&request, &Tokenizer::Bytes, &out).unwrap();
    assert_eq!(split(&out, "train"), expected());
    assert_eq!(split(&out, "val"), [256, 120, 121, 122]);
}

#[test]
fn the_folder_is_current_until_something_changes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let request = small(dir.path());
    let is_current =
        |request: &Request, t: &Tokenizer| current(request, t, &out).unwrap().is_some();
    assert!(!is_current(&request, &Tokenizer::Bytes));
    let made = prepare(&request, &Tokenizer::Bytes, &out).unwrap();
    assert_eq!(current(&request, &Tokenizer::Bytes, &out).unwrap(), Some(made));
    assert_eq!(Tokenizer::load(&out).unwrap().name(), "bytes");

    let other = Request { val_fraction: 0.2, ..request.clone() };
    assert!(!is_current(&other, &Tokenizer::Bytes));
    let chars = Tokenizer::from_json(br#"{"type":"cllm-chars","chars":["a","b","c"]}"#).unwrap();
    assert!(!is_current(&request, &chars));

    let meta = fs::read_to_string(out.join(META_FILE)).unwrap();
    fs::write(out.join(META_FILE), meta.replace("\"complete\": true", "\"complete\": false"))
        .unwrap();
    assert!(!is_current(&request, &Tokenizer::Bytes), "an unfinished folder");
    fs::write(out.join(META_FILE), meta).unwrap();
    assert!(is_current(&request, &Tokenizer::Bytes));

    let has_all = |split| {
        let stream = TokenStream::open(&find_shards(&out, split).unwrap()).ok();
        prepare::refuse_missing(&out, split, stream.as_ref())
    };
    has_all("train").and(has_all("val")).unwrap();
    fs::remove_file(out.join("val_000000.bin")).unwrap();
    assert!(!is_current(&request, &Tokenizer::Bytes), "a shard is missing");
    has_all("train").unwrap();
    let message = has_all("val").unwrap_err().to_string();
    assert!(message.contains("out: ") && message.contains("called val"), "{message}");
    prepare(&request, &Tokenizer::Bytes, &out).unwrap();
    fs::write(dir.path().join("a.txt"), "changed length").unwrap();
    assert!(!is_current(&request, &Tokenizer::Bytes), "a source has changed");
}

#[test]
fn a_failure_leaves_an_unfinished_folder_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let text = [b"fine ".repeat(80_000), b"\xfe bad".to_vec()].concat();
    fs::write(dir.path().join("t.txt"), text).unwrap();
    let request = Request::new(sources(&[dir.path().join("t.txt")]));
    let chars =
        Tokenizer::from_json(br#"{"type":"cllm-chars","chars":[" ","a","b","d","e","f","i","n"]}"#)
            .unwrap();
    let message = prepare(&request, &chars, &out).unwrap_err().to_string();
    assert!(message.contains("t.txt: at byte 400000"), "{message}");
    assert!(!Meta::load(&out).unwrap().is_complete());
    assert!(find_shards(&out, "train").unwrap().is_empty(), "half a shard has no name");
    prepare(&request, &Tokenizer::Bytes, &out).unwrap();
    assert!(Meta::load(&out).unwrap().is_complete());
}

#[test]
fn what_was_cut_off_is_not_taken_for_data() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let text = dir.path().join("t.txt");
    fs::write(&text, [b"fine ".repeat(80_000), b"\xfe bad".to_vec()].concat()).unwrap();
    let request = Request { shard_tokens: 50_000, ..Request::new(sources(&[text])) };
    let chars = Tokenizer::from_json(br#"{"type":"cllm-chars","chars":[" ","e","f","i","n"]}"#);
    prepare(&request, &chars.unwrap(), &out).unwrap_err();
    let shards = find_shards(&out, "train").unwrap();
    assert!(!shards.is_empty(), "some were finished");
    for named in [vec![out.clone()], vec![shards[0].clone()], shards.clone()] {
        let message = discover(&named).unwrap_err().to_string();
        let told = format!("--data {}: data that were cut off", out.display());
        assert!(message.starts_with(&told), "{message}");
    }
    // Beside other text it is passed over: its tokenizer is none to learn from.
    let Input::Text(beside) = discover(&[dir.path().to_path_buf()]).unwrap() else { panic!() };
    assert_eq!(beside.len(), 1);
    prepare(&request, &Tokenizer::Bytes, &out).unwrap();
    assert!(matches!(discover(&shards[..1]).unwrap(), Input::Shards { .. }));
}

#[test]
fn foreign_shards_are_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let request = small(dir.path());
    let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
    prepare(&request, &Tokenizer::Bytes, &theirs).unwrap();
    fs::create_dir(&ours).unwrap();
    fs::copy(theirs.join("train_000000.bin"), ours.join("corpus_train_1.bin")).unwrap();
    let message = prepare(&request, &Tokenizer::Bytes, &ours).unwrap_err().to_string();
    assert!(message.contains("corpus_train_1.bin"), "{message}");
    assert!(ours.join("corpus_train_1.bin").exists());
}

#[test]
fn a_split_that_makes_no_sense_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for val_fraction in [-0.1, 1.0, 7.0, f64::NAN] {
        let request = Request { val_fraction, ..small(dir.path()) };
        let error = prepare(&request, &Tokenizer::Bytes, dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--val-fraction"), "{error}");
    }
}

#[test]
fn data_without_any_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("e.jsonl"), "\n\n{\"text\":\"\"}\n").unwrap();
    let request = Request::new(sources(&[dir.path().join("e.jsonl")]));
    let message =
        prepare(&request, &Tokenizer::Bytes, &dir.path().join("o")).unwrap_err().to_string();
    assert!(message.contains("e.jsonl: no text"), "{message}");
}

#[test]
fn a_prepared_folder_is_found_opened_and_batched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    prepare(&small(dir.path()), &Tokenizer::Bytes, &out).unwrap();
    let Input::Shards { train, val } = discover(&[out]).unwrap() else { panic!("text") };
    let data = Dataset::open(TokenStream::open(&train).unwrap(), 257, 5, 1).unwrap();
    let (mut x, mut y) = ([0; 20], [0; 20]);
    data.fill_batch(1_000_000, 4, &mut x, &mut y).unwrap();
    assert!(x.iter().all(|id| expected().contains(id)));
    let message =
        Validation::open(TokenStream::open(&val).unwrap(), 257, 6).unwrap_err().to_string();
    assert!(message.contains("val_000000.bin: too little data: 6 tokens"), "{message}");
}

#[test]
fn a_long_text_has_the_same_tokens_in_pieces_as_at_once() {
    let text = "It's a  line of the cat's text,\n\n\n  with 123 odd\tspaces ".repeat(12_000);
    let sources = [Source::from_memory("long", text.as_bytes())];
    let tokenizer = cllm::data::vocabulary::train_bpe(&sources, "text", 400).unwrap();
    let mut pieces = Vec::new();
    let counts = prepare::encode(&sources, "text", &tokenizer, &mut |ids| {
        pieces.push(ids.to_vec());
        Ok(())
    })
    .unwrap();
    assert!(pieces.len() > 2, "the text must be long enough to be cut");
    let at_once = tokenizer.encode(text.as_bytes()).unwrap();
    assert!(pieces.concat()[1..] == at_once, "a cut changed the tokens");
    assert_eq!(counts.tokens, at_once.len() as u64 + 1);
}
