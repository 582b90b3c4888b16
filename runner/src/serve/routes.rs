//! From a request to its reply: paths, methods, and what each of them says.

use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use serde_json::{Value, json};

use super::body::{self, Reply, gone};
use super::events::{Events, channel};
use super::guard::{self, PREFLIGHT};
use super::log::Entry;
use super::model::Model;
use super::problem::Problem;
use super::queue::Ask;
use super::reply::{Shape, Streamed, Whole};
use super::request::{Wanted, random};
use super::{Server, page};

/// Most probabilities of tokens that one reply tells.
const PROBABILITIES: usize = 1 << 20;
/// Bytes that such a probability takes with its token, and a token of a text.
const OF_PROBABILITY: usize = 128;
const OF_TOKEN: usize = 16;

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'p> {
    Page,
    Runs,
    Health,
    Models,
    Model(&'p str),
    Completions,
    Chat,
}

impl<'p> Route<'p> {
    fn of(path: &'p str) -> Option<Self> {
        Some(match path {
            "/" | "/index.html" => Self::Page,
            "/api/runs.json" => Self::Runs,
            "/health" => Self::Health,
            "/v1/models" => Self::Models,
            "/v1/completions" => Self::Completions,
            "/v1/chat/completions" => Self::Chat,
            path => Self::Model(path.strip_prefix("/v1/models/").filter(|name| !name.is_empty())?),
        })
    }

    fn methods(self) -> &'static [Method] {
        match self {
            Self::Completions | Self::Chat => &[Method::POST],
            _ => &[Method::GET, Method::HEAD],
        }
    }
}

/// What is said, before it is known for whom.
enum Said {
    Text(StatusCode, &'static str, String),
    Stream(Events, Streamed),
}

impl Said {
    fn json(value: &Value) -> Self {
        Self::Text(StatusCode::OK, "application/json", value.to_string())
    }
}

/// Replies to a request, whatever it is.
pub(super) async fn reply(server: &Arc<Server>, request: Request<Incoming>) -> Response<Reply> {
    let mut entry = Entry::new(server, request.method().as_str(), request.uri().path());
    let by_browser = by_browser(request.headers());
    let origin = server.guard.origin(request.headers(), request.version());
    let (origin, said) = match origin {
        Err(problem) => (None, Err(problem)),
        Ok(Some(origin)) if request.method() == Method::OPTIONS => {
            return preflight(&request, origin, entry);
        }
        Ok(origin) => (origin, said(server, request, &mut entry).await),
    };
    let mut headers = HeaderMap::new();
    let (status, kind) = match &said {
        Ok(Said::Text(status, kind, _)) => (*status, *kind),
        Ok(Said::Stream(..)) => {
            // What proxies know to hand on at once.
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
            (StatusCode::OK, "text/event-stream; charset=utf-8")
        }
        Err(problem) => {
            if let Some(seconds) = problem.retry_after() {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            if problem.status() == StatusCode::UNAUTHORIZED {
                // A browser asks for a password where it is told `Basic`.
                let scheme = if by_browser { "Basic realm=\"cllm\"" } else { "Bearer" };
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
            (problem.status(), "application/json")
        }
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("x-frame-options", HeaderValue::from_static("DENY"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let route = Route::of(entry.path()).map_or(&[][..], Route::methods);
        let all = route.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        headers.extend(HeaderValue::from_str(&all).ok().map(|all| (ALLOW, all)));
    }
    if let Some(origin) = origin {
        guard::allow(&mut headers, origin);
    }
    entry.status = Some(status.as_u16());
    let body = match said {
        Ok(Said::Text(_, _, text)) => Reply::whole(text, entry),
        Ok(Said::Stream(events, streamed)) => Reply::stream(events, streamed, entry),
        Err(problem) => Reply::whole(problem.json().to_string(), entry),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn by_browser(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    headers.contains_key("sec-fetch-mode") || accept.is_some_and(|a| a.contains("text/html"))
}

/// Tells a browser that a page from elsewhere may ask.
fn preflight(
    request: &Request<Incoming>,
    origin: HeaderValue,
    mut entry: Entry,
) -> Response<Reply> {
    entry.status = Some(StatusCode::NO_CONTENT.as_u16());
    let mut response = Response::new(Reply::whole("", entry));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.extend(PREFLIGHT.map(|(name, value)| (name, HeaderValue::from_static(value))));
    if request.headers().contains_key("access-control-request-private-network") {
        let yes = HeaderValue::from_static("true");
        headers.insert("access-control-allow-private-network", yes);
    }
    guard::allow(headers, origin);
    response
}

async fn said(
    server: &Arc<Server>,
    request: Request<Incoming>,
    entry: &mut Entry,
) -> Result<Said, Problem> {
    let path = request.uri().path().to_owned();
    let route = Route::of(&path);
    // Whether it is there may be known to everybody.
    if route != Some(Route::Health) {
        server.guard.token(request.headers())?;
    }
    let Some(route) = route else {
        let words = format!("there is nothing at {}; GET / tells what there is", entry.path());
        return Err(Problem::new(StatusCode::NOT_FOUND, words));
    };
    if !route.methods().contains(request.method()) {
        let words = format!("{} is not for this path", request.method());
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, words));
    }
    match route {
        Route::Page => {
            let text = in_background(server, page::page).await??;
            Ok(Said::Text(StatusCode::OK, "text/html; charset=utf-8", text))
        }
        Route::Runs => {
            let text = in_background(server, page::runs).await??;
            Ok(Said::Text(StatusCode::OK, "application/json", text))
        }
        Route::Health => Ok(health(server)),
        Route::Models => {
            let all = server.model().map(|model| about(server, &model));
            Ok(Said::json(&json!({"object": "list", "data": all.into_iter().collect::<Value>()})))
        }
        Route::Model(name) => {
            check_name(server, Some(&unescaped(name)))?;
            let model = server.model().ok_or_else(|| none_yet(server))?;
            Ok(Said::json(&about(server, &model)))
        }
        Route::Completions | Route::Chat => {
            generate(server, request, entry, route == Route::Chat).await
        }
    }
}

/// Does what takes a while, or reads files, beside the connections.
async fn in_background<R: Send + 'static>(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> R + Send + 'static,
) -> Result<R, Problem> {
    if !server.beside {
        return Ok(work(server));
    }
    let server = Arc::clone(server);
    let work = tokio::task::spawn_blocking(move || work(&server));
    work.await.map_err(|_| Problem::internal("this server is at fault; its log says more"))
}

fn health(server: &Server) -> Said {
    let (status, word) = match server.model() {
        _ if server.queue.is_closed() => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
        Some(_) => (StatusCode::OK, "ok"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no model yet"),
    };
    let text = json!({"status": word, "waiting": server.queue.len()}).to_string();
    Said::Text(status, "application/json", text)
}

/// There is no checkpoint yet.
fn none_yet(server: &Server) -> Problem {
    let words = format!("{} has no checkpoint yet; try again when there is one", server.name);
    Problem::unavailable(words)
}

fn check_name(server: &Server, asked: Option<&str>) -> Result<(), Problem> {
    match asked {
        Some(asked) if asked != server.name => {
            let shown: String = asked.chars().take(100).collect();
            Err(Problem::no_model(&shown, &server.name))
        }
        _ => Ok(()),
    }
}

/// A part of a path without `%20` and the like; as it is if that makes no text.
fn unescaped(part: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let [first, more @ ..] = rest {
        let hex = more.get(..2).and_then(|hex| core::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| part.to_owned())
}

/// What is told of a model.
fn about(server: &Server, model: &Model) -> Value {
    json!({
        "id": server.name, "object": "model", "created": model.created, "owned_by": "cllm",
        "step": model.step, "context_length": model.texts.context, "chat": model.texts.has_chat(),
        "checkpoint": model.path.file_name().map(|name| name.to_string_lossy()),
    })
}

/// Has text generated.
async fn generate(
    server: &Arc<Server>,
    request: Request<Incoming>,
    entry: &mut Entry,
    chat: bool,
) -> Result<Said, Problem> {
    if server.queue.is_closed() {
        return Err(gone());
    }
    let continues =
        request.headers().contains_key("expect") && request.version() > Version::HTTP_10;
    let length = hyper::body::Body::size_hint(request.body()).lower();
    if continues && length > body::LONGEST as u64 {
        return Err(body::too_long());
    }
    let (text, share) = body::read(request.into_body(), &server.held).await?;
    let (out, mut events) = channel();
    // A conversation's template and a long text take a while.
    let ready = move |server: &Server| {
        let wanted = Wanted::read(&text, chat)?;
        check_name(server, wanted.model.as_deref())?;
        let model = server.model().ok_or_else(|| none_yet(server))?;
        let (prompts, most) = model.texts.encode(&wanted.prompt, wanted.most)?;
        let told = probabilities(&wanted, &prompts, &most)?;
        let shape = Shape {
            chat,
            id: format!("{}-{:016x}{:08x}", kind(chat), random(), random() as u32),
            created: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            model: server.name.clone(),
            fingerprint: format!("step-{}-{}", model.step, server.kernels),
            logprobs: wanted.logprobs.is_some(),
            choices: prompts.len() * wanted.n,
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            include_usage: wanted.include_usage,
        };
        let echo = wanted.echo.then(|| model.texts.plain(&wanted.prompt));
        let echoed = echo.iter().flatten().map(String::len).sum::<usize>();
        let tokens = most.iter().fold(0_usize, |all, most| all.saturating_add(*most));
        let texts = tokens.saturating_mul(OF_TOKEN).saturating_add(echoed).saturating_mul(wanted.n);
        // For as long as the reply is not out: it may be long after the request is through.
        let bytes = texts.saturating_add(told.saturating_mul(OF_PROBABILITY));
        let reply = server.replies.reply(bytes)?;
        let Wanted { n, sampler, bias, stop, logprobs, stream, .. } = wanted;
        let texts = Arc::clone(&model.texts);
        let ask = Ask {
            prompts,
            echo,
            n,
            most,
            sampler,
            bias,
            stop,
            logprobs,
            texts,
            out,
            _share: share,
        };
        server.queue.join(ask)?;
        Ok((shape, stream, reply))
    };
    let (shape, stream, reply) = in_background(server, ready).await??;
    entry.share = Some(reply);
    entry.tokens = Some((shape.prompt_tokens, 0));
    if stream {
        return Ok(Said::Stream(events, Streamed::new(shape)));
    }
    let mut whole = Whole::new(shape);
    while !whole.is_complete() {
        whole.add(events.next().await.ok_or_else(gone)?)?;
        entry.tokens = Some(whole.tokens());
    }
    Ok(Said::json(&whole.json()))
}

/// How many probabilities a reply tells.
///
/// # Errors
/// They alone would fill the memory.
fn probabilities(wanted: &Wanted, prompts: &[Vec<u32>], most: &[usize]) -> Result<usize, Problem> {
    let Some(likeliest) = wanted.logprobs else { return Ok(0) };
    let echo = if wanted.echo { prompts.iter().map(Vec::len).sum() } else { 0_usize };
    let tokens = most.iter().fold(echo, |all, most| all.saturating_add(*most));
    let told = tokens.saturating_mul(wanted.n).saturating_mul(1 + likeliest);
    if told <= PROBABILITIES {
        return Ok(told);
    }
    let words = format!("{told} probabilities of one request: at most {PROBABILITIES}");
    Err(Problem::param("logprobs", words))
}

fn kind(chat: bool) -> &'static str {
    if chat { "chatcmpl" } else { "cmpl" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_methods() {
        assert_eq!(Route::of("/v1/models/a/b"), Some(Route::Model("a/b")));
        assert_eq!(Route::of("/v1/models/"), None);
        assert_eq!(Route::of("/v1/embeddings"), None);
        assert_eq!(Route::Chat.methods(), [Method::POST]);
        assert!(Route::Page.methods().contains(&Method::HEAD));
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(unescaped("a%20b%2Fc%"), "a b/c%");
        assert_eq!(unescaped("%ff%zz"), "%ff%zz");
        assert_eq!(unescaped("%C3%A9"), "é");
    }
}
