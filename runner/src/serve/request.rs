//! What requests may ask for: `/v1/completions` and `/v1/chat/completions`.
//!
//! Parameters are OpenAI's, and `top_k`, `min_p` and `repetition_penalty`. What cannot be had is refused
//! with its name, never passed over.

use core::hash::{BuildHasher as _, Hasher as _};
use std::hash::RandomState;

use cllm_core::sample::{Sampler, SamplerConfig, SamplerError};
use serde_json::{Value, json};

use super::fields::{Fields, wrong};
use super::problem::Problem;
use super::queue::Bias;
#[cfg(feature = "chat")]
use crate::chat::{Dialogue, Fault};
#[cfg(feature = "chat")]
use crate::json::Ordered;

/// Most texts of one request.
const CHOICES: usize = 256;
/// Most stop strings, and the bytes of one.
const STOPS: (usize, usize) = (4, 1000);
/// Most tokens that have a bias.
const BIASES: usize = 1024;
/// Most of the likeliest tokens that are told.
const LIKELIEST: usize = 20;

/// A prompt of `/v1/completions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Ids(Vec<u32>),
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    Texts(Vec<Piece>),
    #[cfg(feature = "chat")]
    Messages(Dialogue),
}

/// A request that makes sense as far as can be told without a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// The name of the model; any if there is none.
    pub(super) model: Option<String>,
    pub(super) prompt: Prompt,
    /// Most tokens of each text.
    pub(super) most: Option<usize>,
    /// Texts for each prompt.
    pub(super) n: usize,
    pub(super) sampler: SamplerConfig,
    pub(super) bias: Bias,
    pub(super) stop: Vec<String>,
    /// Texts begin with their prompts.
    pub(super) echo: bool,
    pub(super) logprobs: Option<usize>,
    pub(super) stream: bool,
    /// A stream ends with the counts of tokens.
    pub(super) include_usage: bool,
}

impl Wanted {
    /// Reads the body of a request, for `/v1/chat/completions` if `chat`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(super) fn read(body: &[u8], chat: bool) -> Result<Self, Problem> {
        let mut all = Fields::of(body)?;
        let fields = &mut all;
        let model = fields.text("model")?;
        let (prompt, most, echo, logprobs) =
            if chat { of_chat(fields)? } else { of_completion(fields)? };
        let n = fields.whole("n", 1..=CHOICES)?.unwrap_or(1);
        let prompts = match &prompt {
            Prompt::Texts(pieces) => pieces.len(),
            #[cfg(feature = "chat")]
            Prompt::Messages(_) => 1,
        };
        if prompts.saturating_mul(n) > CHOICES {
            let words =
                format!("{n} texts for each of {prompts} prompts: at most {CHOICES} at a time");
            return Err(Problem::param("n", words));
        }
        let stream = fields.truth("stream")?;
        let include_usage = include_usage(fields, stream)?;
        let wanted = Self {
            model,
            prompt,
            most,
            n,
            sampler: sampler(fields)?,
            bias: bias(fields)?,
            stop: stops(fields)?,
            echo,
            logprobs,
            stream,
            include_usage,
        };
        all.end()?;
        Ok(wanted)
    }
}

/// What the two kinds of requests have for themselves.
type Own = (Prompt, Option<usize>, bool, Option<usize>);

fn of_completion(fields: &mut Fields) -> Result<Own, Problem> {
    let pieces = pieces(fields)?;
    let most = fields.whole("max_tokens", 0..=usize::MAX)?;
    let echo = fields.truth("echo")?;
    let logprobs = fields.whole("logprobs", 0..=LIKELIEST)?;
    fields.only(
        "suffix",
        &[json!("")],
        "these models do not fill in; give the text before it alone",
    )?;
    fields.only("best_of", &[json!(1)], "only n is there: ask for all and choose")?;
    Ok((Prompt::Texts(pieces), most, echo, logprobs))
}

#[cfg(not(feature = "chat"))]
fn of_chat(_: &mut Fields) -> Result<Own, Problem> {
    Err(Problem::bad("this program was built without its feature chat; /v1/completions is there"))
}

#[cfg(feature = "chat")]
fn of_chat(fields: &mut Fields) -> Result<Own, Problem> {
    let said = dialogue(fields)?;
    let range = 1..=usize::MAX;
    let most = fields.whole("max_completion_tokens", range.clone())?;
    // The older name of the same.
    let older = fields.whole("max_tokens", range)?;
    let likeliest = fields.whole("top_logprobs", 0..=LIKELIEST)?;
    let logprobs = match (fields.truth("logprobs")?, likeliest) {
        (true, likeliest) => Some(likeliest.unwrap_or(0)),
        (false, None) => None,
        (false, Some(_)) => {
            return Err(Problem::param("top_logprobs", "it goes with logprobs: true"));
        }
    };
    fields.only("functions", &[json!([])], "the older name of tools, which are understood")?;
    fields.only(
        "function_call",
        &[json!("none"), json!("auto")],
        "the older name of tool_choice",
    )?;
    fields.only(
        "response_format",
        &[json!({"type": "text"})],
        "only {\"type\": \"text\"} is there",
    )?;
    fields.only("modalities", &[json!(["text"])], "only [\"text\"] is there")?;
    Ok((Prompt::Messages(said), most.or(older), false, logprobs))
}

/// A text, several, ids, or several lists of ids.
fn pieces(fields: &mut Fields) -> Result<Vec<Piece>, Problem> {
    let expected = "a text, an array of texts, or of token ids";
    let prompt = fields.take("prompt");
    match prompt {
        None => Ok(vec![Piece::Text(String::new())]),
        Some(Value::String(text)) => Ok(vec![Piece::Text(text)]),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            Ok(vec![Piece::Ids(ids("prompt", &items)?)])
        }
        Some(Value::Array(items)) if items.is_empty() => {
            Err(Problem::param("prompt", "an empty array: there is nothing to continue"))
        }
        Some(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(at, item)| match item {
                Value::String(text) => Ok(Piece::Text(text)),
                Value::Array(items) => Ok(Piece::Ids(ids(&format!("prompt[{at}]"), &items)?)),
                other => {
                    Err(wrong(&format!("prompt[{at}]"), "a text or an array of token ids", &other))
                }
            })
            .collect(),
        Some(other) => Err(wrong("prompt", expected, &other)),
    }
}

fn ids(name: &str, items: &[Value]) -> Result<Vec<u32>, Problem> {
    let id = |(at, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{name}[{at}]"), "a token id", item))
    };
    items.iter().enumerate().map(id).collect()
}

/// The messages, and the tools that the model is told of: what it then says of them is text.
#[cfg(feature = "chat")]
fn dialogue(fields: &mut Fields) -> Result<Dialogue, Problem> {
    let items = match fields.take_ordered("messages") {
        Some(Ordered::List(items)) => items,
        None => return Err(Problem::param("messages", "there must be one message at least")),
        Some(other) => {
            let words = format!("expected an array of messages, not {}", other.kind());
            return Err(Problem::param("messages", words));
        }
    };
    let mut said = Dialogue::default();
    said.hear(&items, false).map_err(|fault| problem(&fault))?;
    let tools = fields.take_ordered("tools");
    let choice = fields.take("tool_choice").unwrap_or_else(|| json!("auto"));
    if ![json!("auto"), json!("none")].contains(&choice) {
        let words = "auto and none are there: no model can be made to call a tool";
        return Err(Problem::param("tool_choice", words));
    }
    if let Some(tools) = tools {
        said.equip(&tools).map_err(|fault| problem(&fault))?;
        if choice == "none" {
            said.tools.clear();
        }
    }
    Ok(said)
}

/// What is wrong with a conversation.
#[cfg(feature = "chat")]
pub(super) fn problem(fault: &Fault) -> Problem {
    let (path, words) = fault.parts();
    Problem::param(&path, words)
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Problem> {
    let name = "stream_options";
    match fields.take(name) {
        None => Ok(false),
        Some(_) if !stream => Err(Problem::param(name, "it goes with stream: true")),
        Some(Value::Object(options)) => match options.get("include_usage") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(include)) => Ok(*include),
            Some(other) => Err(wrong("stream_options.include_usage", "true or false", other)),
        },
        Some(other) => Err(wrong(name, "an object", &other)),
    }
}

fn sampler(fields: &mut Fields) -> Result<SamplerConfig, Problem> {
    let usual = SamplerConfig::default();
    let any = f32::MIN..=f32::MAX;
    let top_p = fields.number("top_p", any.clone())?;
    let config = SamplerConfig {
        temperature: fields.number("temperature", any.clone())?.unwrap_or(usual.temperature),
        // 0 is customary for the most probable token alone.
        top_p: top_p.map_or(usual.top_p, |p| if p == 0.0 { f32::MIN_POSITIVE } else { p }),
        top_k: fields.whole("top_k", 0..=usize::MAX)?.unwrap_or(usual.top_k),
        min_p: fields.number("min_p", any.clone())?.unwrap_or(usual.min_p),
        repetition_penalty: fields
            .number("repetition_penalty", any)?
            .unwrap_or(usual.repetition_penalty),
        seed: seed(fields)?,
    };
    match Sampler::new(config) {
        Ok(_) => Ok(config),
        Err(error) => {
            let name = match error {
                SamplerError::Temperature(_) => "temperature",
                SamplerError::TopP(_) => "top_p",
                SamplerError::MinP(_) => "min_p",
                SamplerError::RepetitionPenalty(_) => "repetition_penalty",
            };
            Err(Problem::param(name, error))
        }
    }
}

/// The seed; without one any.
fn seed(fields: &mut Fields) -> Result<u64, Problem> {
    match fields.take("seed") {
        None => Ok(random()),
        Some(value) => match (value.as_u64(), value.as_i64()) {
            (Some(seed), _) => Ok(seed),
            (None, Some(seed)) => Ok(seed as u64),
            (None, None) => Err(wrong("seed", "a whole number", &value)),
        },
    }
}

/// A number that nobody can tell beforehand.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn bias(fields: &mut Fields) -> Result<Bias, Problem> {
    let frequency = fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let presence = fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let tokens = match fields.take("logit_bias") {
        None => Vec::new(),
        Some(Value::Object(map)) if map.len() > BIASES => {
            let words = format!("{} tokens: at most {BIASES}", map.len());
            return Err(Problem::param("logit_bias", words));
        }
        Some(Value::Object(map)) => {
            map.iter().map(|(id, bias)| one_bias(id, bias)).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong("logit_bias", "an object of token ids", &other)),
    };
    Ok(Bias { frequency, presence, tokens })
}

fn one_bias(id: &str, bias: &Value) -> Result<(u32, f32), Problem> {
    let name = "logit_bias";
    let token = id.parse().map_err(|_| Problem::param(name, "its keys must be token ids"))?;
    let number = bias.as_f64().filter(|x| (-100.0..=100.0).contains(x));
    let number = number.ok_or_else(|| Problem::param(name, "values must be from -100 to 100"))?;
    Ok((token, number as f32))
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let (most, longest) = STOPS;
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(at, item)| match item {
                Value::String(stop) => Ok(stop),
                other => Err(wrong(&format!("stop[{at}]"), "a text", &other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong("stop", "a text or an array of texts", &other)),
    };
    if stops.len() > most {
        return Err(Problem::param("stop", format_args!("{} texts: at most {most}", stops.len())));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > longest) {
        let words = format!("a text is empty, or longer than {longest} bytes");
        return Err(Problem::param("stop", words));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "chat")]
    use crate::chat::Message;

    fn read(body: &Value, chat: bool) -> Result<Wanted, Problem> {
        Wanted::read(body.to_string().as_bytes(), chat)
    }

    /// The parameter that is at fault, and what is said of it.
    fn refused(body: &Value, chat: bool) -> (String, String) {
        let json = read(body, chat).unwrap_err().json();
        let text = |key: &str| json["error"][key].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    }

    #[test]
    fn completions_have_openais_defaults() {
        let wanted = read(&json!({"model": "m", "prompt": "a", "seed": -1}), false).unwrap();
        let sampler = SamplerConfig { seed: u64::MAX, ..SamplerConfig::default() };
        assert_eq!(wanted.sampler, sampler);
        assert_eq!((wanted.n, wanted.most, wanted.stream, wanted.echo), (1, None, false, false));
        assert_eq!(wanted.prompt, Prompt::Texts(vec![Piece::Text("a".to_owned())]));
        let several = json!({"prompt": ["a", [1, 2]], "stop": "x", "top_p": 0, "n": 2});
        let wanted = read(&several, false).unwrap();
        let pieces = vec![Piece::Text("a".to_owned()), Piece::Ids(vec![1, 2])];
        assert_eq!(wanted.prompt, Prompt::Texts(pieces));
        assert_eq!((wanted.stop, wanted.n), (vec!["x".to_owned()], 2));
        assert_ne!(wanted.sampler.seed, read(&several, false).unwrap().sampler.seed);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param, part) in [
            (json!({"prompt": 1}), "prompt", "expected a text"),
            (json!({"prompt": []}), "prompt", "empty array"),
            (json!({"prompt": ["a", 1]}), "prompt[1]", "not a number"),
            (json!({"prompt": [1, "a"]}), "prompt[1]", "a token id"),
            (json!({"prompt": [[1], [-1]]}), "prompt[1][0]", "a token id"),
            (json!({"max_tokens": "x"}), "max_tokens", "a whole number"),
            (json!({"max_tokens": -1}), "max_tokens", "out of range"),
            (json!({"temperature": -0.1}), "temperature", "0 or more"),
            (json!({"temperature": "hot"}), "temperature", "a number"),
            (json!({"temperature": 1e300}), "temperature", "out of range"),
            (json!({"top_p": 1.5}), "top_p", "at most 1"),
            (json!({"min_p": -1}), "min_p", "from 0 to 1"),
            (json!({"repetition_penalty": 0}), "repetition_penalty", "above 0"),
            (json!({"n": 0}), "n", "from 1 to"),
            (json!({"n": 200, "prompt": ["a", "b"]}), "n", "at most 256"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4"),
            (json!({"stop": [""]}), "stop", "empty"),
            (json!({"stop": [1]}), "stop[0]", "a text"),
            (json!({"seed": 1.5}), "seed", "a whole number"),
            (json!({"stream": "yes"}), "stream", "true or false"),
            (json!({"stream_options": {}}), "stream_options", "stream: true"),
            (json!({"frequency_penalty": 3}), "frequency_penalty", "from -2 to 2"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias", "token ids"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias", "100"),
            (json!({"logprobs": 21}), "logprobs", "from 0 to 20"),
            (json!({"best_of": 2}), "best_of", "only n"),
            (json!({"suffix": "x"}), "suffix", "fill in"),
            (json!({"model": 5}), "model", "a text"),
            (json!({"promt": "x"}), "promt", "did you mean prompt?"),
        ] {
            let (at, message) = refused(&body, false);
            assert!(at == param && message.contains(part), "{body}: {at}: {message}");
        }
    }

    #[cfg(feature = "chat")]
    #[test]
    fn messages_are_texts_or_parts_of_texts() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let body = json!({"messages": [
            {"role": "developer", "content": "s"}, {"role": "user", "content": parts}
        ], "logprobs": true, "max_tokens": 3, "max_completion_tokens": 2});
        let wanted = read(&body, true).unwrap();
        let messages = vec![Message::new("system", "s"), Message::new("user", "ab")];
        assert_eq!(wanted.prompt, Prompt::Messages(Dialogue::of(messages)));
        assert_eq!((wanted.most, wanted.logprobs), (Some(2), Some(0)));
        let with = |message: Value| json!({ "messages": [message] });
        for (body, param, part) in [
            (json!({}), "messages", "one message at least"),
            (json!({"messages": "hi"}), "messages", "an array"),
            (with(json!("hi")), "messages[0]", "role and content"),
            (with(json!({"content": "x"})), "messages[0]", "no field \"role\""),
            (with(json!({"role": 1, "content": "x"})), "messages[0].role", "a text, not a number"),
            (with(json!({"role": "user"})), "messages[0].content", "not null"),
            (
                with(json!({"role": "user", "content": [{"type": "image_url"}]})),
                "messages[0].content[0]",
                "a part of type \"image_url\"",
            ),
            (
                with(
                    json!({"role": "assistant", "tool_calls": [{"function": {"arguments": "x"}}]}),
                ),
                "messages[0].tool_calls[0].function.arguments",
                "no object of JSON",
            ),
        ] {
            let (at, message) = refused(&body, true);
            assert!(at == param && message.contains(part), "{body}: {at}: {message}");
        }
        let also = |key: &str, value: Value| {
            let mut body = with(json!({"role": "user", "content": "x"}));
            body[key] = value;
            body
        };
        assert_eq!(refused(&also("tools", json!([{}, 1])), true).0, "tools[1]");
        assert_eq!(refused(&also("tools", json!({})), true).0, "tools");
        assert_eq!(refused(&also("functions", json!([{}])), true).0, "functions");
        assert_eq!(refused(&also("tool_choice", json!("required")), true).0, "tool_choice");
        assert_eq!(refused(&also("top_logprobs", json!(1)), true).0, "top_logprobs");
        assert_eq!(
            refused(&also("response_format", json!({"type": "json"})), true).0,
            "response_format"
        );
        assert_eq!(refused(&also("prompt", json!("x")), true).0, "prompt");
        assert!(read(&also("tools", json!([])), true).is_ok());
    }

    #[cfg(feature = "chat")]
    #[test]
    fn tools_are_those_of_the_request_unless_none_is_to_be_called() {
        let body = |choice: &str| {
            format!(
                r#"{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{{"type": "function",
                "function": {{"name": "f"}}}}]{choice}}}"#
            )
        };
        let tools = |choice: &str| match Wanted::read(body(choice).as_bytes(), true).unwrap().prompt
        {
            Prompt::Messages(said) => said.tools,
            other => panic!("{other:?}"),
        };
        let Ordered::Object(fields) = &tools("")[0] else { panic!("{:?}", tools("")) };
        assert_eq!((fields[0].0.as_str(), fields[1].0.as_str()), ("type", "function"));
        assert_eq!(tools(r#", "tool_choice": "auto""#).len(), 1);
        assert_eq!(tools(r#", "tool_choice": "none""#).len(), 0);
    }
}
