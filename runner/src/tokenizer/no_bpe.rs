//! What stands in the place of byte-pair encoding in a program without it: there is none.

use core::convert::Infallible;

use serde_json::Value;

use super::EncodeError;
use crate::error::{Error, Result};

const WITHOUT: &str = "this program was built without byte-pair encoding (its feature `bpe`)";

/// No tokenizer: nothing makes one.
#[derive(Clone, Debug)]
pub struct BpeTokenizer(Infallible);

impl BpeTokenizer {
    /// # Errors
    /// Always.
    pub fn train<I>(_: I, _: usize) -> Result<Self>
    where
        I: Iterator<Item = String> + Send,
    {
        Err(Error::usage(format!("{WITHOUT}: use --tokenizer bytes or chars")))
    }

    /// # Errors
    /// Always.
    pub fn from_words<'a>(_: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Err(Error::usage(WITHOUT))
    }

    pub(super) fn from_json(_: Value) -> core::result::Result<Self, String> {
        Err(WITHOUT.to_owned())
    }

    #[must_use]
    pub(super) fn vocab_size(&self) -> usize {
        match self.0 {}
    }

    #[must_use]
    pub(super) fn end_of_text(&self) -> u32 {
        match self.0 {}
    }

    pub(super) fn other_ends(&self) -> &[u32] {
        match self.0 {}
    }

    pub(super) fn end_of_text_name(&self) -> String {
        match self.0 {}
    }

    pub(super) fn begin_of_text(&self) -> Vec<u32> {
        match self.0 {}
    }

    pub(super) fn to_json(&self) -> core::result::Result<String, String> {
        match self.0 {}
    }

    pub(super) fn encode_into(
        &self,
        _: &[u8],
        _: bool,
        _: &mut Vec<u32>,
    ) -> core::result::Result<(), EncodeError> {
        match self.0 {}
    }

    pub(super) fn append_bytes(&self, _: u32, _: &mut Vec<u8>) -> bool {
        match self.0 {}
    }

    pub(super) fn decode_together(&self, _: &[u32]) -> String {
        match self.0 {}
    }
}
