//! Requests that wait for the model, in the order in which they came.
//!
//! A request of several texts takes its turn with one of them and then stands in line again, so it
//! does not keep those waiting who came later with one.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cllm_core::sample::SamplerConfig;

use super::body::Share;
use super::events::{Event, Out};
use super::problem::Problem;
use super::texts::Texts;

/// What a request wants generated.
#[derive(Debug)]
pub(super) struct Ask {
    /// Each of which is continued; none is empty.
    pub(super) prompts: Vec<Vec<u32>>,
    /// The text of each, if the reply begins with it.
    pub(super) echo: Option<Vec<String>>,
    /// Continuations of each prompt.
    pub(super) n: usize,
    /// Most tokens of a continuation of each prompt.
    pub(super) most: Vec<usize>,
    /// How tokens are drawn; continuation `i` has the seed `seed + i`.
    pub(super) sampler: SamplerConfig,
    /// What is added to logits.
    pub(super) bias: Bias,
    /// Texts that end a continuation.
    pub(super) stop: Vec<String>,
    /// The number of likeliest tokens to tell besides the probability of each token, if that is wanted.
    pub(super) logprobs: Option<usize>,
    /// Whose identifiers the prompts are made of.
    pub(super) texts: Arc<Texts>,
    /// Who wants it; closed when nobody does any more.
    pub(super) out: Out,
    /// What all that takes of the memory for requests.
    pub(super) _share: Share,
}

impl Ask {
    /// Texts to generate.
    pub(super) fn choices(&self) -> usize {
        self.prompts.len() * self.n
    }
}

/// What is added to logits before a token is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bias {
    /// Taken off for each time that a token was generated before.
    pub(super) frequency: f32,
    /// Taken off if it was generated at all.
    pub(super) presence: f32,
    /// Added to the logits of some tokens.
    pub(super) tokens: Vec<(u32, f32)>,
}

/// The line.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the number of its next text.
    waiting: VecDeque<(Arc<Ask>, usize)>,
    closed: bool,
}

impl Queue {
    /// A line of at most `most` requests.
    pub(super) fn new(most: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), most }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands in line.
    ///
    /// # Errors
    /// The line is full, or the server is about to end.
    pub(super) fn join(&self, ask: Ask) -> Result<(), Problem> {
        let mut state = self.state();
        if state.closed {
            return Err(Problem::unavailable("the server is ending"));
        }
        if state.waiting.len() >= self.most {
            state.waiting.retain(|(ask, _)| !ask.out.is_closed());
        }
        if state.waiting.len() >= self.most {
            let message = format!("{} requests are waiting already; try again later", self.most);
            return Err(Problem::busy(message));
        }
        state.waiting.push_back((Arc::new(ask), 0));
        self.changed.notify_all();
        Ok(())
    }

    /// The next text that somebody still waits for: a request, and which of its texts.
    pub(super) fn next(&self) -> Option<(Arc<Ask>, usize)> {
        let mut state = self.state();
        loop {
            let (ask, choice) = state.waiting.pop_front()?;
            if ask.out.is_closed() {
                continue;
            }
            if choice + 1 < ask.choices() {
                state.waiting.push_back((Arc::clone(&ask), choice + 1));
            }
            return Some((ask, choice));
        }
    }

    /// Waits until there is somebody in line, or the line is closed, but no longer than `time`.
    pub(super) fn wait(&self, time: Duration) {
        let nobody = |state: &mut State| state.waiting.is_empty() && !state.closed;
        drop(self.changed.wait_timeout_while(self.state(), time, nobody));
    }

    /// Waits `time`, or until the line is closed.
    pub(super) fn wait_closed(&self, time: Duration) {
        drop(self.changed.wait_timeout_while(self.state(), time, |state| !state.closed));
    }

    /// Lets nobody in any more and sends away those who have got nothing yet.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.retain(|(ask, choice)| {
            if *choice == 0 {
                let problem = Problem::unavailable("the server is ending");
                ask.out.send(Event::Failed(problem));
            }
            *choice > 0
        });
        self.changed.notify_all();
    }

    /// Whether it was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }
}
