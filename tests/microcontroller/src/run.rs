//! A training that goes on for as long as somebody asks for steps, on windows of a text.

use super::common::Failure;
use super::text;
use cllm_core::{Batch, Optimizer, Schedule, Trainer};
use core::fmt::Write;
use core::ops::Range;

pub(crate) struct Run<'a, 't> {
    pub(crate) trainer: Trainer<'a>,
    /// Tokens and targets of a micro-batch, which is a sequence.
    pub(crate) batch: [&'a mut [u32]; 2],
    /// What it learns from.
    pub(crate) text: &'t [u8],
    /// Micro-batches of a step.
    pub(crate) micro: usize,
    pub(crate) schedule: Schedule,
    pub(crate) optimizer: Optimizer,
}

impl Run<'_, '_> {
    /// Some steps, and a line for the first and each `every`th.
    ///
    /// # Errors
    /// What went wrong, in the core's words.
    pub(crate) fn steps(
        &mut self,
        steps: Range<u64>,
        every: u64,
        tell: &mut dyn Write,
    ) -> Result<(), Failure> {
        let tokens = self.batch[0].len();
        let counted = self.micro * tokens;
        for step in steps {
            let mut sum = 0.0;
            for micro in 0..self.micro {
                let nth = step * self.micro as u64 + micro as u64;
                self.read(text::window(self.text, nth, tokens + 1));
                let batch = Batch::new(self.batch[0], self.batch[1]);
                sum += self.trainer.accumulate(&batch, counted)?.sum;
            }
            self.trainer.update(&self.optimizer, self.schedule.rate(step))?;
            if step == 0 || (step + 1) % every == 0 {
                writeln!(tell, "step {:5}  loss {:.4}", step + 1, sum / counted as f64)?;
            }
        }
        Ok(())
    }

    /// Mean loss over all windows of a text that do not overlap, in nats a character.
    ///
    /// # Errors
    /// What went wrong, in the core's words.
    #[allow(dead_code, reason = "the microcontroller does not validate")]
    pub(crate) fn validate(&mut self, text: &[u8]) -> Result<f64, Failure> {
        let tokens = self.batch[0].len();
        let (mut sum, mut counted) = (0.0, 0);
        for window in text.windows(tokens + 1).step_by(tokens) {
            self.read(window);
            let loss = self.trainer.evaluate(&Batch::new(self.batch[0], self.batch[1]))?;
            (sum, counted) = (sum + loss.sum, counted + loss.counted);
        }
        Ok(sum / counted as f64)
    }

    fn read(&mut self, window: &[u8]) {
        let [tokens, targets] = &mut self.batch;
        for (pair, (token, target)) in window.windows(2).zip(tokens.iter_mut().zip(&mut **targets))
        {
            (*token, *target) = (text::number(pair[0]), text::number(pair[1]));
        }
    }
}
