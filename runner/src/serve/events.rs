//! What becomes of a request, on its way from who generates to who replies.
//!
//! The one never waits for the other: who reads slower than is generated gets longer pieces.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Context, Poll};
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::problem::Problem;

/// Events that may be under way before pieces are held back and put together.
const BEHIND: usize = 1024;

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Event {
    /// More of a text, in whole characters.
    Piece { choice: usize, text: String, scored: Vec<Scored> },
    /// A text has ended: after how many tokens, and how many of its prompt were known already.
    End { choice: usize, reason: Finish, tokens: usize, cached: usize },
    /// There will be no more.
    Failed(Problem),
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) token: Spelled,
    /// Logarithm of its probability; none of the first token of all.
    pub(super) logprob: Option<f32>,
    /// The likeliest ones in its place.
    pub(super) top: Vec<(Spelled, f32)>,
    /// Where its text begins in that of the reply, in characters.
    pub(super) offset: usize,
}

/// The text of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spelled {
    pub(super) text: String,
    pub(super) bytes: Vec<u8>,
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// The model ended it, or a stop string.
    Stop,
    /// It has as many tokens as were wanted.
    Length,
}

impl Finish {
    /// As the interface calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Where events go in.
#[derive(Clone, Debug)]
pub(super) struct Out {
    sender: UnboundedSender<Event>,
    under_way: Arc<AtomicUsize>,
}

/// Where they come out.
#[derive(Debug)]
pub(super) struct Events {
    receiver: UnboundedReceiver<Event>,
    under_way: Arc<AtomicUsize>,
}

/// A way for events.
pub(super) fn channel() -> (Out, Events) {
    let (sender, receiver) = unbounded_channel();
    let under_way = Arc::new(AtomicUsize::new(0));
    (Out { sender, under_way: Arc::clone(&under_way) }, Events { receiver, under_way })
}

impl Out {
    /// Sends an event; who does not listen any more needs not be told.
    pub(super) fn send(&self, event: Event) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender.send(event);
    }

    /// Whether nobody listens any more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether pieces had better wait for more of their text.
    pub(super) fn is_behind(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) >= BEHIND
    }
}

impl Events {
    /// The next event; none if there will be no more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = self.receiver.poll_recv(cx);
        if let Poll::Ready(Some(_)) = event {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        event
    }

    /// As [`Events::poll`].
    pub(super) async fn next(&mut self) -> Option<Event> {
        core::future::poll_fn(|cx| self.poll(cx)).await
    }
}
