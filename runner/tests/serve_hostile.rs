//! `cllm serve` and those who mean no good: broken HTTP, slow clients, foreign names, wrong tokens. It
//! answers with an error or closes the connection, and goes on.
#![cfg(feature = "serve")]

mod cli_support;
mod serve_support;

use core::time::Duration;
use serde_json::json;
use serve_support::{Answer, Server, head, trained};
use std::fs;
use std::io::{Read as _, Write as _};
use std::thread;
use std::time::Instant;

const PATH: &str = "/v1/completions";

/// It goes on, and nothing was its own fault.
#[track_caller]
fn well(server: &mut Server) {
    assert!(server.is_alive(), "{}", server.told());
    assert_eq!(server.get("/health").status, 200);
    // Not the end of text, which might be drawn.
    let reply = server.complete(&json!({"prompt": "In", "max_tokens": 2, "temperature": 0}));
    assert_eq!(reply["usage"]["completion_tokens"], 2);
    let told = server.told();
    assert!(!told.contains("internal error") && !told.contains("panicked"), "{told}");
}

/// Whatever came back is an error or nothing.
#[track_caller]
fn refused(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let text = String::from_utf8_lossy(bytes);
    assert!(text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.0 4"), "{text}");
}

/// Some request with a body.
fn request(server: &Server) -> Vec<u8> {
    let body = json!({"prompt": "In the beginning", "max_tokens": 3, "seed": 1, "stop": ["x"]});
    head(&server.address, "POST", PATH, &["Content-Type: application/json"], &body.to_string())
}

#[test]
fn requests_that_break_off_are_errors() {
    let mut server = Server::start(trained(), "--quiet");
    let whole = request(&server);
    for end in (0..whole.len()).step_by(16) {
        refused(&server.raw(&whole[..end], true));
    }
    assert_eq!(Answer::of(&server.raw(&whole, false)).status, 200);
    well(&mut server);
}

#[test]
fn requests_with_flipped_bits_do_no_harm() {
    let mut server = Server::start(trained(), "--quiet");
    let whole = request(&server);
    let mut state = 1_u32;
    for _ in 0..400 {
        let mut broken = whole.clone();
        for _ in 0..1 + state % 3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bit = (state >> 8) as usize % (8 * broken.len());
            broken[bit / 8] ^= 1 << (bit % 8);
        }
        let answer = server.raw(&broken, true);
        // Some are as good as before.
        if !answer.starts_with(b"HTTP/1.1 2") {
            refused(&answer);
        }
    }
    well(&mut server);
}

#[test]
fn bodies_that_are_made_to_hurt_are_errors() {
    let mut server = Server::start(trained(), "--quiet");
    let deep = 100_000;
    for body in [
        "[".repeat(deep),
        format!("{{\"prompt\": {}{}}}", "[".repeat(deep), "]".repeat(deep)),
        "{\"a\":".repeat(deep),
        format!("{{\"prompt\": [{}]}}", vec!["\"a\""; 100_000].join(",")),
        format!("{{\"prompt\": [{}1]}}", "1,".repeat(1_000_000)),
        format!("{{\"{}\": 1}}", "x".repeat(1 << 20)),
        "{\"prompt\": \"\\ud800\"}".to_owned(),
        "{\"max_tokens\": 1e999999}".to_owned(),
        "{\"max_tokens\": 99999999999999999999999999}".to_owned(),
        "{\"n\": 18446744073709551615}".to_owned(),
        "{\"stop\": 1, \"stop\": 2}".to_owned(),
        "\0".repeat(1000),
    ] {
        let answer = server.ask("POST", PATH, &[], &body);
        assert_eq!(answer.error().0, 400, "{}", &body[..body.len().min(60)]);
    }
    let chat = format!(
        "{{\"messages\": [{}]}}",
        vec!["{\"role\": \"user\", \"content\": \"a\"}"; 50_000].join(",")
    );
    assert_eq!(server.ask("POST", "/v1/chat/completions", &[], &chat).error().0, 400);
    #[cfg(feature = "chat")]
    for more in [
        format!("\"tools\": [{{\"a\": {}{}}}]", "[".repeat(100), "]".repeat(100)),
        format!("\"tools\": [{{\"a\": [{}1]}}]", "1,".repeat(1_000_000)),
        format!("\"tools\": [{}{{}}]", "{\"\":{}},".repeat(100_000)),
        format!("\"tools\": [{{\"{}\": [[]]}}, 1]", "x".repeat(1 << 20)),
        format!("\"tool_choice\": {}{}", "[".repeat(100), "]".repeat(100)),
    ] {
        let chat =
            format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}], {more}}}");
        let answer = server.ask("POST", "/v1/chat/completions", &[], &chat);
        assert_eq!(answer.error().0, 400, "{}", &chat[..100]);
    }
    #[cfg(feature = "chat")]
    for arguments in [
        "[".repeat(100_000),
        format!("{{\\\"a\\\": {}1{}}}", "[".repeat(100), "]".repeat(100)),
        format!("{{\\\"a\\\": [{}1]}}", "1,".repeat(1_000_000)),
        format!("{{{}\\\"\\\":1}}", "\\\"\\\":{},".repeat(200_000)),
    ] {
        let chat = format!(
            "{{\"messages\": [{{\"role\": \"assistant\", \"tool_calls\": [{{\"function\": {{\"arguments\": \
             \"{arguments}\"}}}}]}}]}}"
        );
        let answer = server.ask("POST", "/v1/chat/completions", &[], &chat);
        assert_eq!(answer.error().0, 400, "{}", &chat[..150]);
    }
    let mut bytes = head(&server.address, "POST", PATH, &[], "{\"prompt\": \"??\"}");
    let at = bytes.len() - 4;
    bytes[at..at + 2].copy_from_slice(&[0xff, 0xfe]);
    assert_eq!(Answer::of(&server.raw(&bytes, false)).error().0, 400);
    well(&mut server);
}

#[test]
fn what_is_no_http_is_refused() {
    let mut server = Server::start(trained(), "--quiet");
    let host = server.address.clone();
    let post = format!("POST {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    let many: String = (0..500).map(|n| format!("X-{n}: y\r\n")).collect();
    for request in [
        "\r\n\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}".repeat(50),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "x".repeat(200_000)),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "y".repeat(200_000)),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\n{many}\r\n"),
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
        format!("{post}Content-Length: -1\r\n\r\n"),
        format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
        format!("{post}Content-Length: 99999999999999999999999\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\nab"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n5;{}\r\nab", "e".repeat(100_000)),
        format!("{post}Transfer-Encoding: gzip\r\n\r\nab"),
        format!("CONNECT evil.example:80 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    ] {
        refused(&server.raw(request.as_bytes(), true));
    }
    // In chunks as it should be.
    let body = "{\"prompt\":\"In\"}";
    let chunks: String = body.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let good = format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    assert_eq!(Answer::of(&server.raw(good.as_bytes(), false)).status, 200);
    well(&mut server);
}

#[test]
fn who_is_slow_is_not_waited_for() {
    let mut server = Server::start(trained(), "--quiet");
    let begin = Instant::now();
    // More than the server holds at a time could not be told from less.
    let slow: Vec<_> = (0..40)
        .map(|n| {
            let mut stream = server.connect();
            let start: &[u8] = if n & 1 == 0 { b"GET / HTTP/1.1\r\nHost: loc" } else { b"" };
            stream.write_all(start).unwrap();
            stream
        })
        .collect();
    // Others are served meanwhile.
    well(&mut server);
    assert!(begin.elapsed() < Duration::from_secs(8));
    for mut stream in slow {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    }
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
    // Nor is a client that drips one byte after the other.
    let mut drip = server.connect();
    let begin = Instant::now();
    let dripped = (0..600).any(|_| {
        thread::sleep(Duration::from_millis(50));
        drip.write_all(b"x").is_err()
    });
    assert!(dripped && begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    well(&mut server);
}

#[test]
fn many_connections_that_come_and_go_leave_nothing_behind() {
    let mut server = Server::start(trained(), "--quiet");
    thread::scope(|scope| {
        for n in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for _ in 0..100 {
                    let mut stream = server.connect();
                    let body = json!({"prompt": "In", "max_tokens": 1000, "stream": n & 1 == 0});
                    let text = head(&server.address, "POST", PATH, &[], &body.to_string());
                    let end = if n < 4 { text.len() } else { text.len() / 2 };
                    let _ = stream.write_all(&text[..end]);
                }
            });
        }
    });
    server.wait_for("nobody in line", |server| server.get("/health").json()["waiting"] == 0);
    well(&mut server);
}

#[test]
fn foreign_names_and_pages_are_refused() {
    let server = Server::start(trained(), "--allow-origin https://good.example");
    let local = format!("http://{}", server.address);
    let body = json!({"prompt": "In", "max_tokens": 1}).to_string();
    for (headers, status) in [
        (vec!["Host: localhost".to_owned()], 200),
        (vec!["Host: evil.example".to_owned()], 403),
        (vec![format!("Host: {}.evil.example", server.address)], 400),
        (vec!["Host: 127.0.0.1.evil.example".to_owned()], 403),
        (vec![format!("Origin: {local}")], 200),
        (vec!["Origin: https://evil.example".to_owned()], 403),
        (vec!["Origin: null".to_owned()], 403),
        (vec!["Origin: https://good.example".to_owned()], 200),
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = server.ask("POST", PATH, &headers, &body);
        assert_eq!(answer.status, status, "{headers:?}");
        let allowed = answer.headers.contains("access-control-allow-origin: https://good.example");
        assert_eq!(allowed, headers[0].ends_with("good.example"), "{}", answer.headers);
    }
    let asks = ["Origin: https://good.example", "Access-Control-Request-Method: POST"];
    let preflight = server.ask("OPTIONS", PATH, &asks, "");
    assert_eq!(preflight.status, 204);
    assert!(preflight.headers.contains("access-control-allow-headers: authorization"));
    let evil = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"];
    assert_eq!(server.ask("OPTIONS", PATH, &evil, "").status, 403);
}

#[test]
fn a_token_is_asked_for_and_never_told() {
    let secret = "s3cret-and-long";
    let file = trained().join("token");
    fs::write(&file, format!("{secret}\n")).unwrap();
    let by_file = Server::start(trained(), "--token-file token --host 0.0.0.0");
    let by_variable = Server::start_at(trained(), "out", "", &[("CLLM_TOKEN", secret)]);
    let body = json!({"prompt": "a private matter", "max_tokens": 1}).to_string();
    for mut server in [by_file, by_variable] {
        let port = server.address.rsplit(':').next().unwrap();
        server.address = format!("127.0.0.1:{port}");
        let status = |headers: &[&str]| server.ask("POST", PATH, headers, &body).status;
        assert_eq!(status(&[]), 401);
        assert_eq!(status(&["Authorization: Bearer wrong"]), 401);
        assert_eq!(status(&[&format!("Authorization: Bearer {secret}x")]), 401);
        assert_eq!(status(&[&format!("Authorization: Bearer {secret}")]), 200);
        let refused = server.ask("GET", "/v1/models", &[], "");
        assert_eq!(refused.error().2, "invalid_api_key");
        assert!(refused.headers.contains("www-authenticate: bearer"));
        // A browser asks for a password; pages are no more public than the rest.
        let page = server.ask("GET", "/", &["Accept: text/html"], "");
        assert!(page.status == 401 && page.headers.contains("basic realm"), "{}", page.headers);
        assert_eq!(server.ask("GET", "/api/runs.json", &[], "").status, 401);
        // Of "x:s3cret-and-long".
        let basic = "Authorization: Basic eDpzM2NyZXQtYW5kLWxvbmc=";
        assert_eq!(server.ask("GET", "/", &[basic], "").status, 200);
        assert_eq!(server.get("/health").status, 200);
        let (code, told) = server.end("-INT");
        assert!(code == 0 && told.contains("POST /v1/completions 200"), "{told}");
        assert!(!told.contains("s3cret") && !told.contains("private"), "{told}");
    }
}
