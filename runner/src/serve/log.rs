//! What the server says of itself and of what it was asked: never what was in a text.

use std::io::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use super::body::Share;
use crate::settings::LogFormat;

/// Most bytes of a path that are shown.
const PATH: usize = 120;

/// Where it is said: lines for people on standard error, JSON on standard output.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) format: LogFormat,
    /// Says nothing of requests.
    pub(super) quiet: bool,
}

impl Log {
    /// Says that somebody can ask, on standard output in any case.
    pub(super) fn started(&self, url: &str, name: &str, with_token: bool) {
        match self.format {
            LogFormat::Text => {
                let token = if with_token { ", for those who know the token" } else { "" };
                print(&format!("serving {name} at {url}{token}; Ctrl-C ends it\n"));
            }
            LogFormat::Json => {
                self.line(
                    &json!({"event": "start", "url": url, "model": name, "token": with_token}),
                );
            }
        }
    }

    /// Says which model is served from now on.
    pub(super) fn model(&self, path: &str, step: u64, context: usize) {
        match self.format {
            LogFormat::Text => {
                say!("cllm: the model is that of {path}, step {step}, for {context} tokens");
            }
            LogFormat::Json => self.line(
                &json!({"event": "model", "checkpoint": path, "step": step, "context": context}),
            ),
        }
    }

    /// Says something.
    pub(super) fn note(&self, text: &str) {
        match self.format {
            LogFormat::Text => say!("cllm: {text}"),
            LogFormat::Json => self.line(&json!({"event": "note", "text": text})),
        }
    }

    fn request(&self, entry: &Entry) {
        if self.quiet {
            return;
        }
        let Entry { method, path, status, tokens, .. } = entry;
        let ms = entry.begun.elapsed().as_secs_f64() * 1e3;
        let left = !entry.complete;
        match self.format {
            LogFormat::Text => {
                let tokens = tokens
                    .map_or(String::new(), |(prompt, new)| format!(" {prompt} + {new} tokens"));
                let status = status.map_or("-".to_owned(), |status| status.to_string());
                let left = if left { ", the client left" } else { "" };
                say!("{method} {path} {status}{tokens} {ms:.1} ms{left}");
            }
            LogFormat::Json => self.line(&json!({
                "event": "request", "method": method, "path": path, "status": status,
                "prompt_tokens": tokens.map(|(prompt, _)| prompt),
                "completion_tokens": tokens.map(|(_, new)| new),
                "ms": (ms * 10.0).round() / 10.0, "client_left": left,
            })),
        }
    }

    fn line(&self, value: &Value) {
        print(&format!("{value}\n"));
    }
}

/// A closed standard output ends no server.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A request, which is told of when it is through, or the client has gone.
#[derive(Debug)]
pub(super) struct Entry {
    log: std::sync::Arc<super::Server>,
    method: String,
    path: String,
    begun: Instant,
    pub(super) status: Option<u16>,
    /// Of prompts and of what was generated.
    pub(super) tokens: Option<(usize, usize)>,
    pub(super) complete: bool,
    /// What the reply may take of the memory for replies, until it is out.
    pub(super) share: Option<Share>,
}

impl Entry {
    /// A request that has just come.
    pub(super) fn new(server: &std::sync::Arc<super::Server>, method: &str, path: &str) -> Self {
        let shown = |text: &str| -> String {
            let text: String = text.chars().take(PATH).collect();
            text.escape_debug().to_string()
        };
        Self {
            log: std::sync::Arc::clone(server),
            method: shown(method),
            path: shown(path),
            begun: Instant::now(),
            status: None,
            tokens: None,
            complete: false,
            share: None,
        }
    }

    /// The path, as it is shown.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.log.log.request(self);
    }
}
