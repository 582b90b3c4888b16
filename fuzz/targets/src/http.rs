//! Requests to `cllm serve`: all that a connection may carry. Nothing is the server's own fault, and without the token
//! nothing is told but whether the server is there.

use std::sync::OnceLock;

use cllm::hostile::Given;

use crate::files::Folder;

/// The token that some connections need.
const TOKEN: &str = "s3cret-and-long";
const CONFIG: &str = r#"{"chat_template": "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content if m.content is string else m.tool_calls | tojson }}\n{% endfor %}assistant:"}"#;

/// What a client sends; to a server that wants a token if there is a `t` in front.
pub(crate) fn target(data: &[u8]) -> bool {
    static SERVERS: OnceLock<[Given; 2]> = OnceLock::new();
    let servers = SERVERS.get_or_init(|| {
        let folder = Folder::new();
        folder.put("tokenizer_config.json", CONFIG.as_bytes());
        [None, Some(TOKEN)].map(|token| Given::new(folder.path(), token).expect("a server"))
    });
    let (wants_token, data) = match data {
        [b't', rest @ ..] => (true, rest),
        _ => (false, data),
    };
    let said = servers[usize::from(wants_token)].replies(data);
    let statuses = statuses(&said);
    for status in &statuses {
        assert!((100..500).contains(status), "{status}: a request is the client's fault");
    }
    let said = String::from_utf8_lossy(&said);
    let knows = data.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
    assert!(knows || !said.contains(TOKEN), "a secret is told: {said}");
    // A password of browsers is in base64.
    let may_know = knows || String::from_utf8_lossy(data).to_ascii_lowercase().contains("basic");
    if wants_token && !may_know {
        for secret in ["\"choices\"", "\"object\"", "<!doctype"] {
            assert!(!said.contains(secret), "without the token: {said}");
        }
    }
    statuses.iter().any(|status| (200..300).contains(status))
}

/// The status of each reply; what they say may be anything.
fn statuses(mut said: &[u8]) -> Vec<u16> {
    let mut all = Vec::new();
    while !said.is_empty() {
        let end = said.windows(4).position(|window| window == b"\r\n\r\n");
        // The client has gone before the end of a head.
        let Some(end) = end else { break };
        let head = core::str::from_utf8(&said[..end]).expect("a head is text").to_ascii_lowercase();
        let status = head.strip_prefix("http/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        all.push(status.unwrap_or_else(|| panic!("no reply: {head}")));
        said = &said[end + 4..];
        // Of what is asked for by HEAD only the head is there.
        if said.starts_with(b"HTTP/1.") {
            continue;
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        match field("content-length: ").and_then(|length| length.parse().ok()) {
            Some(length) => said = said.get(length..).unwrap_or_default(),
            // Nothing comes behind a stream that is cut by the end of its client, or by its own.
            None if field("transfer-encoding: ").is_some() => break,
            None => {}
        }
    }
    all
}
