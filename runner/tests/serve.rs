//! `cllm serve` as its clients see it: texts, streams, errors, limits and its end.
#![cfg(feature = "serve")]

mod cli_support;
mod serve_support;

use cli_support::{run_in, words};
use serde_json::{Value, json};
use serve_support::{Answer, LONG, Server, head, train, trained};
use std::io::{BufRead as _, BufReader, Write as _};
use std::thread;
use std::time::Instant;

fn text(reply: &Value) -> &str {
    reply["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}"))
}

/// What `cllm generate` says with these flags, without the prompt.
fn spoken(flags: &str, prompt: &str) -> String {
    let flags = format!("generate --checkpoint out --log-format json {flags} --prompt");
    let said = run_in(trained(), &[words(&flags), vec![prompt]].concat()).json();
    said["text"].as_str().unwrap()[prompt.len()..].to_owned()
}

#[test]
fn texts_are_those_that_generate_says() {
    let server = Server::start(trained(), "");
    let greedy = json!({"model": "out", "prompt": "In the", "max_tokens": 30, "temperature": 0});
    let reply = server.complete(&greedy);
    assert_eq!(text(&reply), spoken("--greedy --tokens 30", "In the"));
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let usage = &reply["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(6), &json!(30)));
    assert_eq!(usage["total_tokens"], 36);
    for (body, flags) in [
        (json!({"seed": 7}), "--temperature 1 --seed 7"),
        (json!({"seed": 8, "top_k": 5}), "--temperature 1 --seed 8 --top-k 5"),
        (json!({"seed": 9, "top_p": 0.5}), "--temperature 1 --seed 9 --top-p 0.5"),
        (
            json!({"seed": 1, "min_p": 0.2, "repetition_penalty": 1.5}),
            "--temperature 1 --seed 1 --min-p 0.2 --repetition-penalty 1.5",
        ),
    ] {
        let mut all = json!({"prompt": "And ", "max_tokens": 40});
        all.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let expected = spoken(&format!("{flags} --tokens 40"), "And ");
        assert_eq!(text(&server.complete(&all)), expected, "{flags}");
        // Tokens of the same text are the same prompt.
        all["prompt"] = json!([65, 110, 100, 32]);
        assert_eq!(text(&server.complete(&all)), expected);
    }
    // Without a seed no text is like the one before.
    let any = json!({"prompt": "", "max_tokens": 40});
    assert_ne!(text(&server.complete(&any)), text(&server.complete(&any)));
}

#[test]
fn a_stream_has_the_pieces_of_the_whole() {
    let server = Server::start(trained(), "");
    // An untrained model speaks bytes that are no characters, and halves of such that are.
    let body = json!({"prompt": ["In the", "\u{e9}"], "n": 2, "max_tokens": 60, "seed": 3,
        "temperature": 1.5, "stop": ["qz", "e\n"]});
    let whole = server.complete(&body);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let mut events = server.post("/v1/completions", &streamed).events();
    let usage = events.pop().unwrap();
    assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
    let mut texts = vec![(String::new(), Value::Null); 4];
    for event in &events {
        assert_eq!((&event["usage"], &event["model"]), (&Value::Null, &json!("out")));
        let choice = &event["choices"][0];
        let (text, reason) = &mut texts[choice["index"].as_u64().unwrap() as usize];
        assert!(reason.is_null(), "more behind the end");
        text.push_str(choice["text"].as_str().unwrap());
        *reason = choice["finish_reason"].clone();
    }
    for (index, (text, reason)) in texts.iter().enumerate() {
        let choice = &whole["choices"][index];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), reason), "{index}");
    }
    assert!(events.len() > 8, "{} events are no stream", events.len());
}

#[test]
fn texts_end_where_they_are_told() {
    let server = Server::start(trained(), "");
    let whole = json!({"prompt": "In", "max_tokens": 50, "seed": 4, "temperature": 0.5});
    let all = server.complete(&whole);
    let all = text(&all);
    let chars: Vec<char> = all.chars().collect();
    let stop: String = chars[20..23].iter().collect();
    let mut body = whole.clone();
    body["stop"] = json!([stop, "never"]);
    let reply = server.complete(&body);
    assert_eq!(text(&reply), &all[..all.find(&stop).unwrap()]);
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() <= 50);
    let mut body = whole.clone();
    body["echo"] = json!(true);
    assert_eq!(text(&server.complete(&body)), format!("In{all}"));
    body["max_tokens"] = json!(0);
    assert_eq!(text(&server.complete(&body)), "In");
    // Several seeds are those of several requests.
    let mut body = whole.clone();
    body["n"] = json!(3);
    let several = server.complete(&body);
    for n in 0..3 {
        let mut one = whole.clone();
        one["seed"] = json!(4 + n);
        assert_eq!(several["choices"][n]["text"], server.complete(&one)["choices"][0]["text"]);
    }
    // The end of text, which a bias makes certain.
    let mut body = whole;
    body["logit_bias"] = json!({"256": 100});
    let reply = server.complete(&body);
    assert_eq!((text(&reply), &reply["usage"]["completion_tokens"]), ("", &json!(1)));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    body["logit_bias"] = json!({"97": 100});
    assert_eq!(text(&server.complete(&body)), "a".repeat(50));
    body["frequency_penalty"] = json!(2);
    body["logit_bias"] = json!({"97": 60, "98": 60});
    let mixed = server.complete(&body);
    let count = |c| text(&mixed).matches(c).count();
    assert!(count('a') + count('b') == 50 && count('a').abs_diff(count('b')) < 10, "{mixed}");
}

#[test]
fn probabilities_are_told_of_what_is_said_and_of_the_prompt() {
    let server = Server::start(trained(), "");
    let body = json!({"prompt": "In the", "max_tokens": 5, "temperature": 0, "logprobs": 3});
    let reply = server.complete(&body);
    let told = &reply["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        told["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), text(&reply));
    for at in 0..5 {
        let top = told["top_logprobs"][at].as_object().unwrap();
        let best = top.values().map(|x| x.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(told["token_logprobs"][at].as_f64(), Some(best));
        assert!(top.len() == 3 && best < 0.0);
    }
    // Of the whole text at once, as tools that measure models ask: the same numbers.
    let whole = format!("In the{}", text(&reply));
    let body = json!({"prompt": whole, "max_tokens": 0, "logprobs": 0, "echo": true});
    let echo = server.complete(&body);
    let given = &echo["choices"][0]["logprobs"];
    assert_eq!(text(&echo), whole);
    assert_eq!(given["token_logprobs"][0], Value::Null);
    assert_eq!(given["text_offset"].as_array().unwrap().len(), 11);
    for at in 0..5 {
        let (one, other) = (&told["token_logprobs"][at], &given["token_logprobs"][at + 6]);
        assert!((one.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-4, "{one} {other}");
        assert_eq!(given["text_offset"][at + 6], 6 + at);
    }
}

#[cfg(feature = "chat")]
#[test]
fn messages_are_answered_by_the_template() {
    let server = Server::start(trained(), "");
    let body = json!({"model": "out", "max_tokens": 20, "temperature": 0, "messages": [
        {"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    ]});
    let path = "/v1/chat/completions";
    let reply = server.post(path, &body).json();
    let expected = spoken("--greedy --tokens 20", "system: Be\nuser: Hi\nassistant:");
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["choices"][0]["message"]["role"], "assistant");
    assert_eq!(reply["choices"][0]["message"]["content"], expected);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["logprobs"] = json!(true);
    let events = server.post(path, &streamed).events();
    let delta = |event: &Value, key: &str| event["choices"][0]["delta"][key].clone();
    assert_eq!(delta(&events[0], "role"), "assistant");
    let pieces = events.iter().map(|event| delta(event, "content"));
    let pieces: String = pieces.filter_map(|piece| Some(piece.as_str()?.to_owned())).collect();
    assert_eq!(pieces, expected);
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["delta"]), (&json!("length"), &json!({})));
    // All that fits, if it is not told.
    let mut open = body;
    open.as_object_mut().unwrap().remove("max_tokens");
    open["logit_bias"] = json!({"256": -100});
    let usage = &server.post(path, &open).json()["usage"];
    assert_eq!(usage["total_tokens"], 2048);
    let empty = server.post(path, &json!({"messages": []})).error();
    assert_eq!((empty.0, empty.1), (400, json!("messages")));
}

#[cfg(feature = "chat")]
#[test]
fn tools_and_calls_are_the_templates() {
    let server = Server::start(trained(), "");
    let path = "/v1/chat/completions";
    // In the order in which somebody wrote it, which `json!` does not keep.
    let body = |more: &str| {
        let calls = r#"[{"type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":2}"}}]"#;
        format!(
            r#"{{"max_tokens": 20, "temperature": 0, "messages": [{{"role": "user", "content": "Hi"}},
            {{"role": "assistant", "content": null, "tool_calls": {calls}, "refusal": null}},
            {{"role": "tool", "tool_call_id": "1", "content": [{{"type": "text", "text": "7"}}]}},
            {{"role": "assistant", "content": ""}}], "tools": [{{"type": "f", "a": 1}}]{more}}}"#
        )
    };
    let said = |more: &str| {
        server.ask("POST", path, &[], &body(more)).json()["choices"][0]["message"]["content"]
            .clone()
    };
    let talk = "user: Hi\nassistant: [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \
                {\"b\": 1, \"a\": 2}}}]\ntool: 7\nassistant: \nassistant:";
    let expected =
        spoken("--greedy --tokens 20", &format!("{{\"type\": \"f\", \"a\": 1}}\n{talk}"));
    assert_eq!(said(""), expected);
    assert_eq!(said(r#", "tool_choice": "none""#), spoken("--greedy --tokens 20", talk));
    for (body, param, part) in [
        (body(r#", "tool_choice": "required""#), "tool_choice", "auto and none"),
        (body("").replace("\"tool\"", "\"toll\""), "messages[2].role", "did you mean tool?"),
        (
            body("").replace("{\\\"b", "{b"),
            "messages[1].tool_calls[0].function.arguments",
            "no object of JSON",
        ),
        (
            body("").replace("\"type\": \"text\"", "\"type\": \"file\""),
            "messages[2].content[0]",
            "\"file\"",
        ),
        (
            body("").replace("null, \"tool_calls\"", "null, \"calls\""),
            "messages[1].content",
            "or else tool_calls",
        ),
        (
            body("").replace("[{\"type\": \"f\", \"a\": 1}]", "[7]"),
            "tools[0]",
            "an object, not a number",
        ),
    ] {
        let answer = server.ask("POST", path, &[], &body);
        let (status, at, _, told) = answer.error();
        assert_eq!((status, at), (400, json!(param)), "{body}");
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn what_is_known_of_a_prompt_changes_nothing() {
    let server = Server::start(trained(), "--parallel 2");
    let body = |prompt: String| json!({"prompt": prompt, "max_tokens": 20, "seed": 1});
    let long = "In the beginning God. ".repeat(20);
    let first = server.complete(&body(long.clone()));
    let cached = |reply: &Value| reply["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&first), 0);
    let again = server.complete(&body(long.clone()));
    assert_eq!((cached(&again), text(&again)), (json!(384), text(&first)));
    let other = body(format!("{}But", &long[..250]));
    let known = server.complete(&other);
    assert_eq!(cached(&known), 192);
    let alone = Server::start(trained(), "").complete(&other);
    assert_eq!((cached(&alone), text(&alone)), (json!(0), text(&known)));
}

#[test]
fn what_is_wrong_is_told_in_openais_words() {
    let server = Server::start(trained(), "");
    let completions = "/v1/completions";
    for (body, status, param, code, part) in [
        (r#"{"prompt": "a","#, 400, json!(null), json!(null), "line 1 column 15"),
        ("", 400, json!(null), json!(null), "not JSON"),
        ("[]", 400, json!(null), json!(null), "an array"),
        (r#"{"model": "gpt-4"}"#, 404, json!("model"), json!("model_not_found"), "\"gpt-4\""),
        (r#"{"max_tokens": "ten"}"#, 400, json!("max_tokens"), json!(null), "a whole number"),
        (
            r#"{"max_tokens": 5000}"#,
            400,
            json!("prompt"),
            json!("context_length_exceeded"),
            "at most 2047",
        ),
        (r#"{"prompt": [999]}"#, 400, json!("prompt"), json!(null), "999"),
        (r#"{"temperature": -1}"#, 400, json!("temperature"), json!(null), "0 or more"),
        (
            r#"{"tempperature": 1}"#,
            400,
            json!("tempperature"),
            json!(null),
            "did you mean temperature",
        ),
    ] {
        let (got, at, its, message) = server.ask("POST", completions, &[], body).error();
        assert_eq!((got, at, its), (status, param, code), "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }
    let long = json!({"prompt": "a".repeat(2048)});
    let (status, _, code, _) = server.post(completions, &long).error();
    assert_eq!((status, code), (400, json!("context_length_exceeded")));
    for (method, path, status, allow) in [
        ("GET", completions, 405, "allow: post"),
        ("POST", "/v1/models", 405, "allow: get, head"),
        ("POST", "/v1/embeddings", 404, ""),
        ("GET", "/v1/models/gpt-4", 404, ""),
        ("GET", "/../../etc/passwd", 404, ""),
        ("OPTIONS", completions, 405, ""),
    ] {
        let answer = server.ask(method, path, &[], "");
        assert_eq!(answer.error().0, status, "{method} {path}");
        assert!(answer.headers.contains(allow), "{}", answer.headers);
    }
    // Too long by a little, by much, and by more than will ever be read.
    for (length, sent) in [(5_u64 << 20, 5 << 20), (60 << 20, 60 << 20), (1 << 50, 10)] {
        let mut request = head(&server.address, "POST", completions, &[], "");
        let text =
            String::from_utf8(request).unwrap().replace(": 0\r\n", &format!(": {length}\r\n"));
        request = text.into_bytes();
        request.resize(request.len() + sent, b' ');
        assert_eq!(Answer::of(&server.raw(&request, false)).error().0, 413, "{length}");
    }
}

#[test]
fn the_model_and_the_run_are_shown() {
    let server = Server::start(trained(), "--name some/name");
    let all = server.get("/v1/models").json();
    let model = &all["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!("some/name"), &json!("model")));
    assert_eq!((&model["step"], &model["context_length"]), (&json!(20), &json!(2048)));
    for path in ["/v1/models/some/name", "/v1/models/some%2Fname"] {
        assert_eq!(server.get(path).json(), *model);
    }
    assert_eq!(server.get("/health").json()["status"], "ok");
    let page = server.get("/");
    assert!(page.status == 200 && page.headers.contains("text/html"), "{}", page.headers);
    let head = server.ask("HEAD", "/", &[], "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    #[cfg(feature = "report")]
    {
        let runs = server.get("/api/runs.json");
        assert_eq!(runs.json()["runs"][0]["name"], "out", "{}", runs.body);
        assert!(page.body.contains("cllm report"));
    }
    // Of a single file there is no run.
    let file = Server::start_at(trained(), "out/best.cllm", "", &[]);
    assert_eq!(file.get("/v1/models").json()["data"][0]["id"], "out-best");
    assert_eq!(file.get("/api/runs.json").status, 404);
    assert!(file.get("/").body.contains("/v1/completions"));
}

#[test]
fn a_hundred_clients_have_what_each_would_have_alone() {
    let server = &Server::start(trained(), "--quiet");
    let body = |client: usize| {
        let prompt = "In the beginning ".repeat(1 + client % 20);
        json!({"prompt": prompt, "max_tokens": 20 + client % 50, "seed": client, "stream": client.is_multiple_of(2)})
    };
    let whole = |answer: &Answer| -> String {
        assert_eq!(answer.status, 200, "{}", answer.body);
        if !answer.headers.contains("event-stream") {
            return text(&answer.json()).to_owned();
        }
        let events = answer.events();
        assert!(!events.last().unwrap()["choices"][0]["finish_reason"].is_null());
        events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect()
    };
    let ask = |client| whole(&server.post("/v1/completions", &body(client)));
    let alone: Vec<String> = (0..100).map(ask).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..100).map(|client| scope.spawn(move || ask(client))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

/// A stream of a request that takes long, of which the first event has come.
fn begun(server: &Server) -> BufReader<std::net::TcpStream> {
    let body = json!({"prompt": "In", "max_tokens": 2000, "n": 256, "stream": true,
        "logit_bias": {"256": -100}});
    let mut stream = server.connect();
    let request = head(&server.address, "POST", "/v1/completions", &[], &body.to_string());
    stream.write_all(&request).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    reader
}

#[test]
fn who_goes_away_keeps_nobody_waiting() {
    let mut server = Server::start(trained(), "--parallel 1 --log-format json");
    let begin = Instant::now();
    for streamed in [true, false] {
        if streamed {
            drop(begun(&server));
        } else {
            let body = json!({"prompt": "In", "max_tokens": 2000, "n": 256}).to_string();
            let mut stream = server.connect();
            let request = head(&server.address, "POST", "/v1/completions", &[], &body);
            stream.write_all(&request).unwrap();
            server.wait_for("its turn", |server| server.get("/health").json()["waiting"] == 1);
        }
        let left = loop {
            let line: Value = serde_json::from_str(&server.line()).unwrap();
            if line["path"] == "/v1/completions" {
                break line;
            }
        };
        let status = if streamed { json!(200) } else { json!(null) };
        assert_eq!((&left["client_left"], &left["status"]), (&json!(true), &status));
        assert!(left["completion_tokens"].as_u64().unwrap() < 256 * 2000);
        server.wait_for("nobody", |server| server.get("/health").json()["waiting"] == 0);
    }
    // All of it would take minutes.
    assert!(begin.elapsed() < LONG / 2);
}

#[test]
fn who_reads_slowly_loses_nothing() {
    let server = Server::start(trained(), "");
    let (n, tokens) = (40, 1500);
    let mut body = json!({"prompt": "In", "max_tokens": tokens, "n": n, "seed": 6,
        "logit_bias": {"256": -100}});
    let whole = server.complete(&body);
    body["stream"] = json!(true);
    let mut stream = server.connect();
    let request = head(&server.address, "POST", "/v1/completions", &[], &body.to_string());
    stream.write_all(&request).unwrap();
    // Until all is generated, which nobody takes meanwhile.
    server.wait_for("its turn", |server| server.get("/health").json()["waiting"] == 1);
    server.wait_for("its last turn", |server| server.get("/health").json()["waiting"] == 0);
    server.complete(&json!({"prompt": "In", "max_tokens": 2000}));
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut all).unwrap();
    let events = Answer::of(&all).events();
    let mut texts = vec![String::new(); n];
    for event in &events {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["text"].as_str().unwrap());
    }
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(whole["choices"][index]["text"], *text, "{index}");
    }
    assert!(events.len() < n * tokens / 2, "{} pieces are not put together", events.len());
}

#[test]
fn a_long_line_is_sent_away_and_a_short_text_waits_for_no_long_one() {
    let server = Server::start(trained(), "--queue 1 --parallel 1");
    // Stands in line again after each of its texts.
    let _first = begun(&server);
    server.wait_for("a full line", |server| server.get("/health").json()["waiting"] == 1);
    let answer = server.post("/v1/completions", &json!({"prompt": "a"}));
    let (status, _, code, message) = answer.error();
    assert_eq!((status, code), (429, json!("rate_limit_exceeded")), "{message}");
    assert!(answer.headers.contains("retry-after: 1"), "{}", answer.headers);
    let server = Server::start(trained(), "--parallel 2");
    let _long = begun(&server);
    let begin = Instant::now();
    server.complete(&json!({"prompt": "a", "max_tokens": 3}));
    assert!(begin.elapsed() < LONG / 4);
}

#[test]
fn the_end_is_orderly() {
    let server = Server::start(trained(), "");
    let stream = {
        let mut stream = server.connect();
        let body = json!({"prompt": "In", "max_tokens": 1900, "n": 16, "seed": 2, "stream": true,
            "logit_bias": {"256": -100}});
        let body = body.to_string();
        let request = head(&server.address, "POST", "/v1/completions", &[], &body);
        stream.write_all(&request).unwrap();
        stream
    };
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let address = server.address.clone();
    let begin = Instant::now();
    server.signal("-INT");
    let mut all = line;
    std::io::Read::read_to_string(&mut reader, &mut all).unwrap();
    let (code, told) = server.end("-0");
    assert_eq!(code, 0, "{told}");
    let events = Answer::of(all.as_bytes()).events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(begin.elapsed() < LONG / 2);
    assert!(std::net::TcpStream::connect(address).is_err());
    // What takes too long is cut off, who waits is told.
    let server = Server::start(trained(), "--parallel 1");
    let _first = begun(&server);
    let body = json!({"prompt": "a", "max_tokens": 2000, "n": 256}).to_string();
    // On a busy machine the signal may be late, and the first of these have begun.
    let waiting = [(); 12].map(|()| {
        let mut stream = server.connect();
        stream.write_all(&head(&server.address, "POST", "/v1/completions", &[], &body)).unwrap();
        stream
    });
    server.wait_for("a line", |server| server.get("/health").json()["waiting"] == 13);
    let begin = Instant::now();
    let (code, told) = server.end("-TERM");
    assert_eq!(code, 0, "{told}");
    let answers = waiting.map(|mut stream| {
        let mut all = Vec::new();
        let read = std::io::Read::read_to_end(&mut stream, &mut all);
        // What has begun is cut off: it has nothing, for its texts are sent as one.
        (read.is_ok() && !all.is_empty()).then(|| Answer::of(&all).status)
    });
    let told = answers.iter().flatten().count();
    assert!(answers.iter().flatten().all(|status| *status == 503), "{answers:?}");
    assert!(told >= answers.len() / 2, "{answers:?}");
    assert!(begin.elapsed() < LONG / 2);
}

#[test]
fn a_run_that_goes_on_is_served_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // As a run has left it that has just begun.
    train(dir, "other", "--max-steps 2");
    std::fs::create_dir(dir.join("out")).unwrap();
    std::fs::copy(dir.join("other/settings.json"), dir.join("out/settings.json")).unwrap();
    let server = Server::start(dir, "--name no-model");
    assert_eq!(server.get("/health").status, 503);
    assert_eq!(server.get("/v1/models").json()["data"], json!([]));
    let answer = server.post("/v1/completions", &json!({"prompt": "a"}));
    assert_eq!(answer.error().0, 503);
    assert!(answer.headers.contains("retry-after"));
    assert_eq!(server.get("/").status, 200);
    std::fs::remove_file(dir.join("out/settings.json")).unwrap();
    train(dir, "out", "--max-steps 2 --eval-interval 2");
    server.wait_for("the first model", |server| server.get("/health").status == 200);
    let step = |server: &Server| server.get("/v1/models").json()["data"][0]["step"].clone();
    let before = server.complete(&json!({"prompt": "In", "max_tokens": 30, "temperature": 0}));
    assert!(before["system_fingerprint"].as_str().unwrap().starts_with("step-2-"), "{before}");
    #[cfg(feature = "report")]
    let runs = || server.get("/api/runs.json").body;
    #[cfg(feature = "report")]
    let seen = runs();
    run_in(dir, &words("train --resume --out-dir out --max-steps 60 --eval-interval 20 --quiet"))
        .done();
    server.wait_for("the last model", |server| step(server) == 60);
    let after = server.complete(&json!({"prompt": "In", "max_tokens": 30, "temperature": 0}));
    assert_ne!(text(&before), text(&after));
    assert!(server.told().contains("step 60"), "{}", server.told());
    #[cfg(feature = "report")]
    assert!(runs() != seen && runs() == runs(), "the page shows the run of before");
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    for (flags, code, parts) in [
        ("serve nowhere", 1, &["nowhere"][..]),
        ("serve out --port 65536", 2, &["--port 65536"]),
        ("serve out --parallel 0", 2, &["--parallel 0"]),
        ("serve out --queue 0", 2, &["--queue 0"]),
        ("serve out --context 5000", 2, &["--context 5000", "2048"]),
        ("serve out --host 0.0.0.0", 2, &["--host 0.0.0.0", "--token-file", "CLLM_TOKEN"]),
        ("serve out --host no.such.name.invalid", 2, &["--host no.such.name.invalid"]),
        ("serve out --token-file nowhere", 1, &["nowhere"]),
        ("serve out --allow-origin example.org", 2, &["--allow-origin example.org"]),
        ("serve .", 1, &["no checkpoint", "no run"]),
    ] {
        run_in(trained(), &words(flags)).refused(code, parts);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    run_in(trained(), &["serve", "out", "--port", &port]).refused(1, &["cannot listen", &port]);
}
