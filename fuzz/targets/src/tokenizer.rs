//! Tokenizers: one that is taken encodes any text or says why not, and what is written of it does the same.

use cllm::tokenizer::Tokenizer;

use crate::files::parts;

/// Encoded whatever the text of the input is.
const TEXT: &[u8] = "In the beginning 12.5 <|endoftext|> d\u{e9}j\u{e0}\n\n vu\u{1f600}".as_bytes();

/// `tokenizer.json` and a text.
pub(crate) fn target(data: &[u8]) -> bool {
    let [json, text] = parts(data);
    let Ok(tokenizer) = Tokenizer::from_json(json) else { return false };
    let written = tokenizer.to_json().expect("a tokenizer can be written");
    let again = Tokenizer::from_json(written.as_bytes()).expect("a tokenizer that was written");
    assert_eq!(again.vocab_size(), tokenizer.vocab_size());
    assert_eq!(again.end_of_text(), tokenizer.end_of_text());
    for text in [TEXT, text] {
        let ids = tokenizer.encode(text);
        assert_eq!(again.encode(text), ids);
        let Ok(ids) = ids else { continue };
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{ids:?}");
        let whole = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream_decoder();
        let pieces: String = ids.iter().map(|id| stream.push(*id)).collect();
        let pieces = pieces + &stream.finish();
        // Of other kinds the text of a token may depend on any that came before.
        if !matches!(tokenizer, Tokenizer::Bpe(_)) {
            assert_eq!(pieces, whole);
        }
    }
    // Ids that no text has.
    let _ = tokenizer.decode(&[0, u32::MAX, tokenizer.vocab_size() as u32]);
    true
}
