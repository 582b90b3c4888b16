//! TensorBoard's file of a session, in a program that has been built with it.

use super::event::Event;
use crate::error::{Error, Result};
use crate::settings::TrainSettings;

#[cfg(feature = "report")]
use crate::report::tensorboard as report;

/// The figures of a session for TensorBoard.
#[derive(Debug)]
pub struct Board {
    #[cfg(feature = "report")]
    file: report::Board,
    /// There is none.
    #[cfg(not(feature = "report"))]
    never: core::convert::Infallible,
}

/// Refuses what this program cannot do, before anything is changed.
pub(super) fn check(settings: &TrainSettings) -> Result<()> {
    if settings.tensorboard && cfg!(not(feature = "report")) {
        return Err(Error::usage(
            "--tensorboard: this program was built without its feature report; go on with --tensorboard \
             false",
        ));
    }
    Ok(())
}

/// Begins the file of a session after `step` steps, if it is wanted, and takes out of others what a
/// session that was killed has said of later ones.
#[cfg(feature = "report")]
pub(super) fn begin(settings: &TrainSettings, step: u64) -> Result<Option<Board>> {
    report::forget(&settings.out_dir, step)?;
    if !settings.tensorboard {
        return Ok(None);
    }
    Ok(Some(Board { file: report::Board::create(&settings.out_dir)? }))
}

/// There is nothing to begin: see [`check`].
#[cfg(not(feature = "report"))]
pub(super) fn begin(_: &TrainSettings, _: u64) -> Result<Option<Board>> {
    Ok(None)
}

impl Board {
    /// Writes the figures of an event, if it has any.
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    #[cfg(feature = "report")]
    pub fn event(&mut self, event: &Event) -> Result<()> {
        self.file.event(event)
    }

    /// Nothing.
    #[cfg(not(feature = "report"))]
    pub fn event(&mut self, _: &Event) -> Result<()> {
        match self.never {}
    }
}
