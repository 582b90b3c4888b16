//! `cllm train --trace FILE`: who did what when in some steps of a run.
//!
//! ```text
//! worker  -> Recorder -> Pen -> Track          (record: buffers from before the run)
//! training thread  -> Tracer: spans            (tracer: which steps, and its own row)
//! end of the recording: costs::measure, chrome::write, and the file takes its name
//! ```
//! [`chrome::read`] gives `cllm simulate` the tiles back.

pub mod about;
pub mod chrome;
pub(crate) mod costs;
pub mod record;
pub mod tracer;
