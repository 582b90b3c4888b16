//! Text: pieces of a document are the document, tokens of bytes and of characters say it again.

use cllm::data::pieces::Pieces;
use cllm::data::prepare::{Request, encode_in_memory};
use cllm::data::source::{Input, Source, discover};
use cllm::tokenizer::{CharTokenizer, Tokenizer};

use crate::files::Folder;

/// A file of text.
pub(crate) fn target(data: &[u8]) -> bool {
    let memory = Source::from_memory("text.txt", data);
    assert_eq!(put_together(core::slice::from_ref(&memory)), data);
    let folder = Folder::new();
    folder.put("text.txt", data);
    // Zero bytes near its start make it no text.
    if let Ok(found) = discover(&[folder.path().to_path_buf()])
        && let Input::Text(sources) = found
    {
        assert_eq!(put_together(&sources), data);
    }
    said_again(&memory, data, &Tokenizer::Bytes);
    if let Ok(chars) = CharTokenizer::train([data]) {
        said_again(&memory, data, &Tokenizer::Chars(chars));
        return true;
    }
    false
}

fn put_together(sources: &[Source]) -> Vec<u8> {
    let (mut pieces, mut all) = (Pieces::new(sources, "text"), Vec::new());
    while let Some(piece) = pieces.next_piece().expect("text of any bytes") {
        assert!(!piece.bytes.is_empty() && piece.offset == all.len() as u64);
        assert_eq!(piece.starts_document, all.is_empty());
        all.extend_from_slice(piece.bytes);
    }
    all
}

fn said_again(source: &Source, data: &[u8], tokenizer: &Tokenizer) {
    let mut request = Request::new(vec![source.clone()]);
    request.val_fraction = 0.0;
    let Ok((train, val)) = encode_in_memory(&request, tokenizer) else { return };
    let mut ids = vec![0; (train.len() + val.len()) as usize];
    let (first, last) = ids.split_at_mut(train.len() as usize);
    train.fill_checked(0, first, tokenizer.vocab_size()).expect("ids of the tokenizer");
    val.fill_checked(0, last, tokenizer.vocab_size()).expect("ids of the tokenizer");
    let text: Vec<u32> = ids.into_iter().filter(|id| *id != tokenizer.end_of_text()).collect();
    assert_eq!(tokenizer.decode_bytes(&text), data);
}
