//! Pictures of runs for people: files for TensorBoard, and a page of HTML.
//!
//! Of the page, data flow one way:
//!
//! ```text
//! run folders -> data::RunData (tolerant of what other versions write, thinned to be drawn)
//!             -> JSON -> page::render, or polled by a page that is live
//!             -> page/*.js draw it
//! ```

pub mod data;
mod events;
pub mod page;
pub mod tensorboard;
mod thin;
mod work;
