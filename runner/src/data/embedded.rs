//! The text that the program carries: the King James Bible, public domain.
//!
//! Where it comes from is told in `runner/data/README.md`.

use crate::error::{Error, Result};

/// Name of the text in messages and fingerprints.
pub const NAME: &str = "the built-in text (King James Bible)";

/// Length of the text in bytes.
pub const BYTES: usize = 4_153_207;

#[cfg(feature = "text")]
static COMPRESSED: &[u8] = include_bytes!("../../data/bible-kjv.txt.gz");

/// The text: ASCII, a chapter's name between blank lines, a verse a line.
///
/// # Errors
/// When the program was built without it, or its file is damaged.
#[cfg(feature = "text")]
pub fn text() -> Result<Vec<u8>> {
    use std::io::Read as _;

    let mut text = Vec::with_capacity(BYTES);
    flate2::read::GzDecoder::new(COMPRESSED)
        .read_to_end(&mut text)
        .map_err(|e| Error::failure(format!("cannot unpack {NAME}: {e}")))?;
    Ok(text)
}

/// See the other one.
#[cfg(not(feature = "text"))]
pub fn text() -> Result<Vec<u8>> {
    Err(Error::usage(format!("this program was built without {NAME}: give --data")))
}

#[cfg(all(test, feature = "text"))]
mod tests {
    use super::*;
    use crate::data::sha256_hex;

    #[test]
    fn the_text_is_whole() {
        let text = text().unwrap();
        assert_eq!(text.len(), BYTES);
        assert!(text.starts_with(b"Genesis 1\n\nIn the beginning God created"));
        assert!(text.ends_with(b"be with you all. Amen.\n"));
        assert!(text.is_ascii());
        assert_eq!(
            sha256_hex(&text),
            "dbd05e2e52ecd8fa20be8da9c0eac0dbe2fb8744939cb37cc454686e241bdb02"
        );
    }
}
