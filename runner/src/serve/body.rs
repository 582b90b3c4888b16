//! Bodies: of requests, within limits of bytes and time; of replies, at once or as they are made.

use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Context, Poll};
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::events::{Event, Events};
use super::log::Entry;
use super::problem::Problem;
use super::reply::Streamed;

/// Most bytes of the body of a request.
pub(super) const LONGEST: usize = 4 << 20;
/// Of longer ones so much is read and thrown away, so that the client hears what is wrong: one that is
/// still sending would see a broken connection instead.
const SWALLOWED: usize = 64 << 20;
/// Most bytes of all bodies that are held at a time, or what was made of them.
const ALL: usize = 64 << 20;
/// Most bytes of all replies that are under way at a time, as far as can be told before they are made.
const REPLIES: usize = 256 << 20;
/// How long a body may take.
const TIME: Duration = Duration::from_secs(30);
/// A stream that has nothing to say for so long says that it is there.
const SILENCE: Duration = Duration::from_secs(15);

/// Counts the bytes of all bodies, or of all replies, that are held.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<AtomicUsize>);

impl Held {
    /// How many those are.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A share for a reply that may come to so many bytes.
    ///
    /// # Errors
    /// There is not as much left, or never would be.
    pub(super) fn reply(&self, bytes: usize) -> Result<Share, Problem> {
        if bytes > REPLIES {
            let (all, most) = (bytes >> 20, REPLIES >> 20);
            let words = format!("the reply may take {all} MB of memory: at most {most}");
            return Err(Problem::param("n", words));
        }
        let mut share = Share { held: self.clone(), bytes: 0 };
        share.grow(bytes, REPLIES).map(|()| share)
    }
}

/// Some of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    held: Held,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize, most: usize) -> Result<(), Problem> {
        self.bytes += bytes;
        if self.held.0.fetch_add(bytes, Ordering::Relaxed) + bytes > most {
            return Err(Problem::busy("too many long requests at once; try again later"));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads the body of a request, which takes a share of what is held as long as anything of it is there.
///
/// # Errors
/// It is too long, takes too long, or ends too early; too many are read at once.
pub(super) async fn read(body: Incoming, held: &Held) -> Result<(Vec<u8>, Share), Problem> {
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to come");
    timeout(TIME, read_all(body, held)).await.map_err(late)?
}

/// The body is longer than any may be.
pub(super) fn too_long() -> Problem {
    let words = format!("the body is longer than {} MB", LONGEST >> 20);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, words)
}

async fn read_all(body: Incoming, held: &Held) -> Result<(Vec<u8>, Share), Problem> {
    if body.size_hint().lower() > SWALLOWED as u64 {
        return Err(too_long());
    }
    let mut body = pin!(body);
    let mut share = Share { held: held.clone(), bytes: 0 };
    let (mut all, mut length) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| Problem::bad("the body is not whole, or not HTTP"))?;
        // What comes behind a body in chunks is of no use.
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > SWALLOWED {
            break;
        }
        if length <= LONGEST {
            share.grow(data.len(), ALL)?;
            all.extend_from_slice(&data);
        } else {
            // What is thrown away takes nothing from others.
            (all, share) = (Vec::new(), Share { held: held.clone(), bytes: 0 });
        }
    }
    if length > LONGEST { Err(too_long()) } else { Ok((all, share)) }
}

/// The body of a reply.
#[derive(Debug)]
pub(super) enum Reply {
    /// All of it; with what is told of the request when it is out.
    Whole { text: Option<Bytes>, _entry: Entry },
    /// What becomes of a request, as it becomes.
    Stream(Box<Stream>),
}

/// Events of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    events: Events,
    reply: Streamed,
    out: VecDeque<String>,
    ended: bool,
    silence: Pin<Box<Sleep>>,
    entry: Entry,
}

impl Reply {
    /// A reply that is `text`.
    pub(super) fn whole(text: impl Into<Bytes>, mut entry: Entry) -> Self {
        entry.complete = true;
        Self::Whole { text: Some(text.into()).filter(|text| !text.is_empty()), _entry: entry }
    }

    /// A reply that is made of `events`.
    pub(super) fn stream(events: Events, reply: Streamed, entry: Entry) -> Self {
        let silence = Box::pin(sleep(SILENCE));
        let out = VecDeque::new();
        Self::Stream(Box::new(Stream { events, reply, out, ended: false, silence, entry }))
    }
}

impl Stream {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(text) = self.out.pop_front() {
                self.silence.as_mut().reset(Instant::now() + SILENCE);
                self.entry.tokens = Some(self.reply.tokens());
                self.entry.complete = self.ended && self.out.is_empty();
                return Poll::Ready(Some(text.into()));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let event = match self.events.poll(cx) {
                Poll::Ready(event) => event,
                Poll::Pending => {
                    if self.silence.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.out.push_back(": waiting\n\n".to_owned());
                    continue;
                }
            };
            let event = event.unwrap_or_else(|| Event::Failed(gone()));
            self.ended = self.reply.add(event, &mut self.out);
        }
    }
}

/// Whoever should have replied is not there any more.
pub(super) fn gone() -> Problem {
    Problem::unavailable("the server is ending")
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Whole { text, .. } => Poll::Ready(text.take()),
            Self::Stream(stream) => stream.next(cx),
        };
        next.map(|text| text.map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole { text: None, .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { text, .. } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_their_share_until_they_are_out() {
        let held = Held::default();
        let half = held.reply(REPLIES / 2).unwrap();
        let other = held.reply(REPLIES / 2).unwrap();
        assert_eq!(held.bytes(), REPLIES / 2 * 2);
        assert_eq!(held.reply(1 << 20).unwrap_err().status(), StatusCode::TOO_MANY_REQUESTS);
        drop(half);
        drop(held.reply(1 << 20).unwrap());
        drop(other);
        // There would never be room.
        assert_eq!(held.reply(REPLIES + 1).unwrap_err().status(), StatusCode::BAD_REQUEST);
        assert_eq!(held.bytes(), 0);
    }
}
