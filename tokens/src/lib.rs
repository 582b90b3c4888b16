//! The loops over texts and tokens that the runner spends time in.
//!
//! A crate of its own, for that is what optimisation is chosen by: of the program that is given
//! away the runner is built for size, this for speed.

mod chars;
mod packed;
#[cfg(feature = "words")]
mod words;

pub use chars::CharSet;
pub use packed::{bytes_to_tokens, pack_narrow, pack_wide, unpack_narrow, unpack_wide};
#[cfg(feature = "words")]
pub use words::{Words, is_letter_or_number, words};
