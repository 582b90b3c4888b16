//! What is wrong with a request, in the form that clients of OpenAI's interface read.

use core::fmt;

use hyper::StatusCode;
use serde_json::{Value, json};

/// Seconds after which somebody who was sent away may ask again.
const RETRY_SECONDS: u32 = 1;

/// Why a request gets no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl Problem {
    /// A problem with a request as a whole.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A request that makes no sense: 400.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A parameter that makes no sense: 400. The message begins with its name.
    pub(super) fn param(name: &str, message: impl fmt::Display) -> Self {
        let message = format!("{name}: {message}");
        Self { param: Some(name.to_owned()), ..Self::bad(message) }
    }

    /// The prompt and what is to follow it are too long: 400.
    pub(super) fn too_long(name: &str, message: impl fmt::Display) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::param(name, message) }
    }

    /// There is no such model: 404.
    pub(super) fn no_model(asked: &str, there: &str) -> Self {
        let message = format!("the model {asked:?} is not here; this server has {there:?}");
        let problem = Self::new(StatusCode::NOT_FOUND, message);
        Self { param: Some("model".to_owned()), code: Some("model_not_found"), ..problem }
    }

    /// The token is missing or another one: 401.
    pub(super) fn token(message: &str) -> Self {
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// Too many ask at once: 429.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        Self { code: Some("rate_limit_exceeded"), ..problem }
    }

    /// Nothing can be generated just now: 503.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// This program is at fault: 500.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The status of the reply.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// After how many seconds asking again makes sense, if it does.
    pub(super) fn retry_after(&self) -> Option<u32> {
        let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        later.contains(&self.status).then_some(RETRY_SECONDS)
    }

    /// The body of the reply.
    pub(super) fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let (message, param, code) = (&self.message, &self.param, self.code);
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}
