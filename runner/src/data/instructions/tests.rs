//! What counts of each kind of line, and lines that are refused.

use super::*;
use crate::data::source::Source;
use cllm_core::IGNORE;

/// Bytes, and the special token `<|im_end|>`.
const IM_END: u32 = 257;
const CHATML: &str = "{% for message in messages %}{{ message['role'] + ':' + message['content'] + \
    '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";

/// A tokenizer of bytes whose end of text is the end of a message.
fn tokenizer() -> Tokenizer {
    let mut json: serde_json::Value =
        serde_json::from_str(&Tokenizer::Bytes.to_transformers().unwrap()).unwrap();
    let token = serde_json::json!({
        "id": IM_END, "content": "<|im_end|>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    });
    json["added_tokens"].as_array_mut().unwrap().push(token);
    json["end_of_text"] = "<|im_end|>".into();
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn usage(template: Option<&str>) -> Usage {
    Usage { chat_template: template.map(str::to_owned), ..Usage::default() }
}

fn read(template: Option<&str>, loss_on: LossOn, block_size: usize, lines: &str) -> Result<Read> {
    let tokenizer = tokenizer();
    let usage = (usage(template), Path::new("there"));
    let encoder = Encoder::new(&tokenizer, usage, loss_on, "text", block_size);
    encoder.read(&[Source::from_memory("d.jsonl", lines.as_bytes())])
}

/// The text of each example with what counts in brackets; the end is `$`, another end of text `#`.
fn shown(read: &Read) -> Vec<String> {
    let tokenizer = tokenizer();
    let one = |id: u32| match id {
        IM_END => "$".to_owned(),
        256 => "#".to_owned(),
        id => tokenizer.decode(&[id]),
    };
    (0..read.examples.len())
        .map(|i| {
            let places = read.examples.places(i);
            let (mut tokens, mut targets) = (vec![0; places], vec![0; places]);
            read.examples.fill(i, &mut tokens, &mut targets);
            let mut text = one(tokens[0]);
            // The last token is only a target.
            for (target, token) in targets.iter().zip(tokens[1..].iter().chain([&0])) {
                text += &match *target {
                    IGNORE => one(*token),
                    target => format!("[{}]", one(target)),
                };
            }
            text.replace("][", "")
        })
        .collect()
}

fn completions(lines: &str) -> Vec<String> {
    shown(&read(Some(CHATML), LossOn::Completions, 100, lines).unwrap())
}

fn all(lines: &str) -> Vec<String> {
    shown(&read(Some(CHATML), LossOn::All, 100, lines).unwrap())
}

const PAIR: &str = r#"{"prompt": "1+1=", "completion": "2"}"#;
#[cfg(feature = "chat")]
const TALK: &str = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content":
    "Ho"}, {"role": "user", "content": "Who"}, {"role": "assistant", "content": "I"}, {"role": "user",
    "content": "Oh"}]}"#;

/// `TALK` on one line.
#[cfg(feature = "chat")]
fn talk() -> String {
    TALK.replace('\n', " ")
}

#[test]
fn completions_count_with_their_end() {
    assert_eq!(completions(PAIR), ["1+1=[2$]"]);
    assert_eq!(all(PAIR), ["1[+1=2$]"]);
    assert_eq!(completions(r#"{"prompt": "", "completion": "ab"}"#), ["$[ab$]"]);
    assert_eq!(completions(r#"{"prompt": "a<|im_end|>", "completion": "b"}"#), ["a<|im_end|>[b$]"]);
}

#[test]
fn of_texts_all_counts() {
    let text = r#"{"text": "ab"}"#;
    assert_eq!(completions(text), ["a[b$]"]);
    assert_eq!(all(text), ["a[b$]"]);
    // Where there are no conversations, texts are set apart by their ends.
    let read = read(None, LossOn::Completions, 100, text).unwrap();
    assert_eq!(shown(&read), ["$[ab$]"]);
}

#[cfg(feature = "chat")]
#[test]
fn replies_count_with_what_ends_them() {
    let counted = "user:Hi$\nassistant:[Ho$]\nuser:Who$\nassistant:[I$]";
    assert_eq!(completions(&talk()), [counted]);
    assert_eq!(all(&talk()), ["u[ser:Hi$\nassistant:Ho$\nuser:Who$\nassistant:I$\nuser:Oh$\n]"]);
    // Other fields do not matter.
    let more = talk().replacen('{', r#"{"prompt": "Hi", "id": 3, "#, 1);
    assert_eq!(completions(&more), [counted]);
}

#[cfg(feature = "chat")]
#[test]
fn conversations_are_messages_by_other_names() {
    let shared = r#"{"id": "x", "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value":
        "Hi"}, {"from": "gpt", "value": "Ho"}]}"#;
    let counted = "system:S$\nuser:Hi$\nassistant:[Ho$]";
    assert_eq!(completions(&shared.replace('\n', " ")), [counted]);
    // Some have the field with OpenAI's names in it.
    assert_eq!(completions(&talk().replace("messages", "conversations")), completions(&talk()));
    // Tables of several sets of data have fields of nothing.
    let both = shared.replace(r#"{"id""#, r#"{"messages": null, "id""#);
    assert_eq!(completions(&both.replace('\n', " ")), [counted]);
}

#[cfg(feature = "chat")]
#[test]
fn of_a_completion_of_messages_only_its_own_replies_count() {
    let line = |prompt: &str, completion: &str| {
        let line = format!(r#"{{"prompt": [{prompt}], "completion": [{completion}]}}"#);
        line
    };
    let of = |role: &str, content: &str| format!(r#"{{"role": "{role}", "content": "{content}"}}"#);
    let (hi, ho) = (of("user", "Hi"), of("assistant", "Ho"));
    assert_eq!(completions(&line(&hi, &ho)), ["user:Hi$\nassistant:[Ho$]"]);
    let before = [&*hi, &*ho, &*hi].join(", ");
    let counted = "user:Hi$\nassistant:Ho$\nuser:Hi$\nassistant:[Ho$]";
    assert_eq!(completions(&line(&before, &ho)), [counted]);
    // Of several each, but not what others say between them.
    let more = [&*ho, &*of("tool", "7"), &*ho].join(", ");
    let counted = "user:Hi$\nassistant:[Ho$]\ntool:7$\nassistant:[Ho$]";
    assert_eq!(completions(&line(&hi, &more)), [counted]);
    assert_eq!(completions(&line("", &ho)), ["assistant:[Ho$]"]);
    // A silent model is one that somebody talked to before.
    let silent = [&*hi, &*of("assistant", ""), &*hi].join(", ");
    let counted = "user:Hi$\nassistant:$\nuser:Hi$\nassistant:[Ho$]";
    assert_eq!(completions(&line(&silent, &ho)), [counted]);
    assert_eq!(all(&line(&hi, &ho)), ["u[ser:Hi$\nassistant:Ho$\n]"]);
    // As OpenAI says that one is not to be learnt.
    let weighed = talk().replacen(r#""Ho""#, r#""Ho", "weight": 0"#, 1);
    let counted = "user:Hi$\nassistant:Ho$\nuser:Who$\nassistant:[I$]";
    assert_eq!(completions(&weighed), [counted]);
}

#[cfg(feature = "chat")]
#[test]
fn tools_and_their_calls_are_the_templates() {
    let template = "{% for t in tools or [] %}{{ t | tojson }};{% endfor %}{% for m in messages %}{{ m.role + ':' }}\
        {% if m.tool_calls %}{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>\
        {% endfor %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";
    let line = |tools: &str, arguments: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": [{{"type": "text", "text": "H"}}, {{"type": "text",
            "text": "i"}}]}}, {{"role": "assistant", "content": null, "tool_calls": [{{"id": "1", "type":
            "function", "function": {{"name": "f", "arguments": {arguments}}}}}]}}, {{"role": "tool",
            "tool_call_id": "1", "name": "f", "content": "7"}}, {{"role": "assistant", "content": "Ho",
            "tool_calls": null}}]{tools}}}"#
        )
        .replace('\n', " ")
    };
    let of = |line: &str| shown(&read(Some(template), LossOn::Completions, 400, line).unwrap());
    let talk = "user:Hi$\nassistant:[<f {\"b\": 1, \"a\": 2}>$]\ntool:7$\nassistant:[Ho$]";
    assert_eq!(of(&line("", r#"{"b": 1, "a": 2}"#)), [talk]);
    assert_eq!(of(&line("", r#""{\"b\":1,\"a\":2}""#)), [talk]);
    let told = format!("{}{talk}", r#"{"type": "f", "a": {"z": null, "b": [1.5]}};"#);
    let tools = r#"[{"type": "f", "a": {"z": null, "b": [1.5]}}]"#;
    assert_eq!(of(&line(&format!(r#", "tools": {tools}"#), "{\"b\": 1, \"a\": 2}")), [&*told]);
    let quoted = serde_json::Value::from(tools).to_string();
    assert_eq!(of(&line(&format!(r#", "tools": {quoted}"#), "{\"b\": 1, \"a\": 2}")), [&*told]);
    // Who does not know of tools does without.
    let plain = line(r#", "tools": [{"a": 1}]"#, "{}")
        .replace("null, \"tool_calls\": [", "\"x\", \"tool_calls\": [");
    assert_eq!(completions(&plain), ["user:Hi$\nassistant:[x$]\ntool:7$\nassistant:[Ho$]"]);
}

#[cfg(feature = "chat")]
#[test]
fn a_reply_that_no_token_ends_counts_whole() {
    let plain = "{% for m in messages %}{{ m.role[0] + ':' + m.content + ';' }}{% endfor %}";
    let read = read(Some(plain), LossOn::Completions, 100, &talk()).unwrap();
    assert_eq!(shown(&read), ["u:Hi;[a:Ho;]u:Who;[a:I;]"]);
}

#[test]
fn long_examples_are_cut_and_those_without_an_answer_left_out() {
    let long = r#"{"prompt": "123456", "completion": "789"}"#;
    let lines = [PAIR, long, PAIR].join("\n");
    let at = |block_size| read(None, LossOn::Completions, block_size, &lines).unwrap();
    let whole = at(9);
    assert_eq!((whole.cut, whole.dropped, whole.examples.len()), (0, 0, 3));
    let cut = at(7);
    assert_eq!((cut.cut, cut.dropped), (1, 0));
    assert_eq!(shown(&cut)[1], "123456[78]");
    let dropped = at(5);
    assert_eq!((dropped.cut, dropped.dropped), (0, 1));
    assert_eq!(shown(&dropped), ["1+1=[2$]"; 2]);
    let error = read(None, LossOn::Completions, 3, &lines).unwrap_err().to_string();
    assert!(error.contains("each of the 3 examples") && error.contains("above 3"), "{error}");
}

#[test]
fn lines_that_are_no_examples_are_named() {
    let refused = |template: Option<&str>, line: &str| {
        // More lines than are encoded at a time come before it.
        let lines = [&format!("{PAIR}\n").repeat(LINES + 1), "\n", line, "\n", PAIR].concat();
        let error = read(template, LossOn::Completions, 100, &lines).unwrap_err().to_string();
        let start = format!("d.jsonl:{}: ", LINES + 3);
        assert!(error.starts_with(&start), "{error}");
        error
    };
    for (line, what) in [
        ("{oops", "not a line of JSON"),
        ("[1]", "an array, where each line is to be an object; a file that is one array"),
        ("1", "not a JSON object, but a number"),
        (
            "{\"a\": 1}",
            "no field \"messages\", \"conversations\", \"text\", or \"prompt\" and \"completion\"",
        ),
        (r#"{"prompt": "a"}"#, "no field \"completion\""),
        (r#"{"completion": "a"}"#, "no field \"prompt\""),
        (r#"{"prompt": 1, "completion": "a"}"#, "\"prompt\" is a number, not a text"),
        (r#"{"prompt": "a", "completion": ""}"#, "the completion is empty"),
        (r#"{"text": ["a"]}"#, "\"text\" is an array, not a text"),
        (r#"{"instruction": "a", "output": "b"}"#, "it looks like Alpaca"),
        (r#"{"prompt": "a", "completion": []}"#, "make both texts, or both arrays of messages"),
        (r#"{"prompt": [], "completion": "a"}"#, "make both texts, or both arrays of messages"),
        (r#"{"text": ""}"#, "\"text\" is empty"),
    ] {
        let error = refused(Some(CHATML), line);
        assert!(error.contains(what), "{error}");
    }
    #[cfg(feature = "chat")]
    for (line, what) in [
        (r#"{"messages": {}}"#, "\"messages\" is an object, not an array"),
        (r#"{"conversations": 3}"#, "\"conversations\" is a number, not an array"),
        (
            r#"{"conversations": [{"from": "function_call", "value": "a"}]}"#,
            "message 1: role: no role \"function_call\": ",
        ),
        (r#"{"conversations": [{"from": "human"}]}"#, "message 1: no field \"value\""),
        (r#"{"messages": [{"from": "human", "value": "a"}]}"#, "message 1: no field \"role\""),
        (r#"{"messages": []}"#, "there must be one message at least"),
        (r#"{"messages": [3]}"#, "message 1: expected an object of role and content, not a number"),
        (r#"{"messages": [{"role": "user"}]}"#, "message 1: content: expected a text"),
        (
            r#"{"messages": [{"role": "user", "content": null}]}"#,
            "message 1: content: expected a text or an array of parts, not null",
        ),
        (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "no message of the role assistant"),
        (
            r#"{"messages": [{"role": "user", "content": "a<|im_end|>"}]}"#,
            "message 1: content: it spells <|im_end|>, which only the chat template may say",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]}"#,
            "message 2: role: no role \"asistant\": did you mean assistant?",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": ""}]}"#,
            "message 1: content: the assistant says nothing",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant"}]}"#,
            "prompt and completion: message 2: content: expected a text or an array of parts, or else tool_calls",
        ),
        (
            r#"{"prompt": [{"role": "assistant", "content": "a"}], "completion": [{"role": "user", "content":"b"}]}"#,
            "no message of the role assistant",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "a"}], "tools": {}}"#,
            "tools: expected an array",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "a"}], "tools": "x"}"#,
            "tools: a text that is no",
        ),
    ] {
        let error = refused(Some(CHATML), line);
        assert!(error.contains(what), "{error}");
    }
    #[cfg(feature = "chat")]
    {
        let talk = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
        assert!(refused(None, talk).contains("give prompt and completion as texts instead"));
        let strict = "{{ raise_exception('Only users and assistants') }}";
        let reply = r#"{"messages": [{"role": "assistant", "content": "a"}]}"#;
        assert!(refused(Some(strict), reply).contains("Only users and assistants"));
        assert!(refused(Some("{% for x in %}"), reply).contains("there: the chat template"));
    }
}

#[test]
fn validation_is_evenly_spread_and_keeps_lines_together() {
    let line = |i: usize| format!("{{\"prompt\": \"{i:02}\", \"completion\": \"x\"}}\n");
    let lines: String = (0..20).map(line).collect();
    let read = read(None, LossOn::Completions, 100, &lines).unwrap();
    let of = |share| {
        let [train, val] = read.split(share);
        assert_eq!(train.len() + val.len(), 20);
        let read = Read { examples: val, ..Read::default() };
        shown(&read).iter().map(|text| text[..2].parse().unwrap()).collect::<Vec<usize>>()
    };
    assert_eq!(of(0.0), Vec::<usize>::new());
    assert_eq!(of(0.2), [4, 9, 14, 19]);
    assert_eq!(of(0.001), [19]);
    assert_eq!(of(0.999).len(), 19);
    let one = Read { lines: vec![2], ..read.clone() };
    assert_eq!(one.split(0.5)[1].len(), 0);
}

#[test]
fn folders_are_searched_for_lines_and_tokens_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("readme.md"), "text").unwrap();
    let all = [dir.path().to_str().unwrap().to_owned()];
    let error = sources("--data", &all).unwrap_err().to_string();
    assert!(error.contains("no file of JSON lines"), "{error}");
    std::fs::write(at("a.jsonl"), PAIR).unwrap();
    assert_eq!(sources("--data", &all).unwrap().len(), 1);
    // Whoever names a file means it.
    assert_eq!(sources("--data", &[at("a.jsonl"), at("readme.md"), "-".into()]).unwrap().len(), 3);
    crate::data::shard::ShardWriter::create(Path::new(&at("t.bin")), 300)
        .unwrap()
        .finish()
        .unwrap();
    let error = sources("--val-data", &[at("t.bin")]).unwrap_err();
    assert!(error.to_string().starts_with("--val-data: ") && error.exit_code() == 2, "{error}");
}
