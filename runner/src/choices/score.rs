//! Log-probabilities of texts behind others, in passes of as many tokens as they need.
//!
//! A pass has one text, for what a pass gives is the loss of all that it has. The longest texts come
//! first; those that are not much shorter have the same plan, filled up behind their ends, where nothing
//! counts and nothing that counts looks.

use cllm_core::{Batch, BatchShape, Engine, Evaluator, IGNORE, Kernels, Mode, Plan};

use crate::error::{Error, Result};
use crate::memory::PoolMemory;
use crate::model;
use crate::pool::{self, Crew};
use crate::trained::Trained;

/// Tokens of a plan for each token of the shortest text that it is taken for: another plan packs the
/// model's weights again, which takes as long as a pass or two.
const SLACK: f64 = 1.25;

/// A text behind another.
pub(super) struct Behind<'a> {
    /// What it is behind; at least one token.
    pub(super) context: &'a [u32],
    /// What is scored; at least one token.
    pub(super) text: &'a [u32],
}

impl Behind<'_> {
    /// Places that a pass needs: the last token is only predicted.
    fn places(&self) -> usize {
        self.context.len() + self.text.len() - 1
    }

    fn fill(&self, tokens: &mut [u32], targets: &mut [u32]) {
        tokens.fill(0);
        targets.fill(IGNORE);
        let all = self.context.iter().chain(self.text);
        for (to, id) in tokens[..self.places()].iter_mut().zip(all) {
            *to = *id;
        }
        targets[self.context.len() - 1..][..self.text.len()].copy_from_slice(self.text);
    }
}

/// The log-probability of each text.
///
/// # Errors
/// The machine has not the memory, or a checkpoint is damaged.
pub(super) fn scores(
    texts: &[Behind<'_>],
    trained: &Trained,
    workers: usize,
    kernels: &'static Kernels,
) -> Result<Vec<f64>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|i| core::cmp::Reverse(texts[*i].places()));
    let mut scores = vec![0.0; texts.len()];
    let mut left = &order[..];
    while let Some(longest) = left.first().map(|i| texts[*i].places()) {
        let fits = |i: &usize| texts[*i].places() as f64 * SLACK >= longest as f64;
        let (alike, rest) = left.split_at(left.partition_point(fits));
        pass(alike, longest, texts, trained, workers, kernels, &mut scores)?;
        left = rest;
    }
    Ok(scores)
}

/// Scores the texts of these numbers, none of which needs more than `places`.
fn pass(
    which: &[usize],
    places: usize,
    texts: &[Behind<'_>],
    trained: &Trained,
    workers: usize,
    kernels: &'static Kernels,
    scores: &mut [f64],
) -> Result<()> {
    let shape = BatchShape { sequences: 1, tokens: places };
    let plan = Plan::new(trained.config(), shape, workers, Mode::Evaluate, kernels);
    let plan = plan.map_err(model::plan_error)?;
    let mut memory = PoolMemory::allocate(&plan)?;
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).map_err(model::plan_error)?;
    let evaluator = Evaluator::new(&plan, kernels, pools, &engine).map_err(model::plan_error)?;
    let mut evaluator = evaluator.wait_with(&pool::CALLER);
    trained.read_parameters(evaluator.parameters_mut())?;
    let (mut tokens, mut targets) = (vec![0; places], vec![0; places]);
    pool::with_workers(&engine, &Crew::new(workers, false), || {
        for i in which {
            texts[*i].fill(&mut tokens, &mut targets);
            let loss = evaluator.evaluate(&Batch::new(&tokens, &targets));
            scores[*i] = -loss.map_err(|e| Error::failure(format!("scoring answers: {e}")))?.sum;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_alone_counts() {
        let (mut tokens, mut targets) = ([9; 6], [9; 6]);
        Behind { context: &[1, 2], text: &[3, 4, 5] }.fill(&mut tokens, &mut targets);
        assert_eq!(tokens, [1, 2, 3, 4, 0, 0]);
        assert_eq!(targets, [IGNORE, 3, 4, 5, IGNORE, IGNORE]);
        Behind { context: &[1], text: &[3] }.fill(&mut tokens[..1], &mut targets[..1]);
        assert_eq!((tokens[0], targets[0]), (1, 3));
    }
}
