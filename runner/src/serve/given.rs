//! Connections whose bytes are there before they begin, for the fuzz target of requests: the server as it is, without
//! sockets, and with something in the place of its model that says the same of every text.

use core::cell::RefCell;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, RwLock};

use cllm_core::Dtype;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::events::{Event, Finish};
use super::guard::Guard;
use super::http;
use super::log::Log;
use super::model::Model;
use super::patient::{PATIENCE, Patient};
use super::queue::{Ask, Queue};
use super::texts::Texts;
use super::{Held, ServeSettings, Server};
use crate::error::Result;
use crate::settings::{LogFormat, Threads};
use crate::tokenizer::Tokenizer;

/// Ids of the model: those of bytes, the end of text, and some that no text has.
const IDS: usize = 300;
/// Tokens that it sees at a time.
const CONTEXT: usize = 512;
/// Most times that a connection is looked at: of one that has ended there is nothing left to wait for.
const LOOKS: usize = 10_000;

/// A server of a model of bytes.
#[derive(Debug)]
pub struct Given {
    server: Arc<Server>,
    runtime: Runtime,
}

impl Given {
    /// A server of this machine, with the chat template in `dir` if there is one, for those who know the token.
    ///
    /// # Errors
    /// A template that cannot be read; the system refuses a runtime.
    pub fn new(dir: &Path, token: Option<&str>) -> Result<Self> {
        let settings = ServeSettings {
            path: dir.to_path_buf(),
            host: "127.0.0.1".to_owned(),
            port: 8080,
            name: None,
            parallel: 1,
            queue: 4,
            context: None,
            token_file: None,
            without_token: false,
            origins: vec!["https://a.example".to_owned()],
            reload: false,
            threads: Threads::Count(1),
            isa: None,
            dtype: Dtype::F32,
            log_format: LogFormat::Text,
            quiet: true,
        };
        let texts = Arc::new(Texts::new(Tokenizer::Bytes, dir, IDS, CONTEXT)?);
        let model = Model { texts, step: 1, path: dir.join("step-1.cllm"), created: 1 };
        let server = Server {
            name: "model".to_owned(),
            kernels: "none".to_owned(),
            guard: Guard::new(([127, 0, 0, 1], 8080).into(), token, &settings.origins),
            log: Log { format: settings.log_format, quiet: true },
            queue: Queue::new(settings.queue),
            held: Held::default(),
            replies: Held::default(),
            model: RwLock::new(Some(Arc::new(model))),
            beside: false,
            #[cfg(feature = "report")]
            run: None,
            settings,
        };
        Ok(Self { server: Arc::new(server), runtime: http::runtime()? })
    }

    /// All that the server says to a client that sends these bytes and then goes when nothing more comes back.
    ///
    /// # Panics
    /// If a connection goes on whose client has gone, or a text is asked for that the model cannot have.
    #[must_use]
    pub fn replies(&self, bytes: &[u8]) -> Vec<u8> {
        let line = Rc::new(RefCell::new(Line { sent: bytes.to_vec(), ..Line::default() }));
        self.runtime.block_on(async {
            let (_end, ending) = watch::channel(false);
            let client = Patient::new(Client(Rc::clone(&line)), PATIENCE);
            let mut connection = pin!(http::connection(client, Arc::clone(&self.server), ending));
            let mut looks = 0;
            poll_fn(|cx| {
                if connection.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                looks += 1;
                assert!(looks < LOOKS, "a connection goes on whose client has gone");
                if !self.answer() {
                    line.borrow_mut().gone = true;
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        });
        let held = self.server.held.bytes();
        assert_eq!(held, 0, "bytes of bodies are still counted of requests that are through");
        let replies = self.server.replies.bytes();
        assert_eq!(replies, 0, "bytes of replies are still counted of requests that are through");
        line.take().said
    }

    /// Answers who waits in line; false if nobody does.
    fn answer(&self) -> bool {
        let mut somebody = false;
        while let Some((ask, choice)) = self.server.queue.next() {
            check(&ask);
            let text = "\u{e9}\"<\u{0}".to_owned();
            ask.out.send(Event::Piece { choice, text, scored: Vec::new() });
            let (reason, tokens, cached) = (Finish::Length, 1, 0);
            ask.out.send(Event::End { choice, reason, tokens, cached });
            somebody = true;
        }
        somebody
    }
}

/// What a request has passed, the model can do.
fn check(ask: &Ask) {
    assert_eq!(ask.prompts.len(), ask.most.len());
    for (prompt, most) in ask.prompts.iter().zip(&ask.most) {
        assert!(!prompt.is_empty() && prompt.len() + most <= CONTEXT, "{ask:?}");
        assert!(prompt.iter().all(|id| (*id as usize) < IDS), "{ask:?}");
    }
}

/// What goes both ways.
#[derive(Debug, Default)]
struct Line {
    sent: Vec<u8>,
    /// Bytes of it that were read.
    read: usize,
    gone: bool,
    said: Vec<u8>,
}

/// The server's end.
#[derive(Debug)]
struct Client(Rc<RefCell<Line>>);

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut line = self.0.borrow_mut();
        let rest = &line.sent[line.read..];
        // Whoever waits is looked at again by the one who gave the bytes.
        if rest.is_empty() && !line.gone {
            return Poll::Pending;
        }
        let some = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..some]);
        line.read += some;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().said.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
