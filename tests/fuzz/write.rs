//! Seeds as people write them: settings, texts, requests, conversations, small tokenizers.

use cllm_fuzz_targets::MARK;
use serde_json::json;

use super::make::Seed;

/// Two who talk, and a tool.
pub(crate) const CONVERSATION: &str = r#"{"messages": [{"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "How deep is"}, {"type": "text", "text": " the sea?"}]},
    {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "id": "1",
        "function": {"name": "depth", "arguments": "{\"of\": \"sea\"}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "11 km"},
    {"role": "assistant", "content": "11 km", "weight": 1}],
    "tools": [{"type": "function", "function": {"name": "depth", "parameters": {"of": [1, -2.5e3, null, true]}}}]}"#;

fn joined(parts: &[&str]) -> Vec<u8> {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    parts.join(MARK)
}

/// Flags, configuration files, tuning files.
pub(crate) fn settings() -> Vec<Seed> {
    let flags = "--preset\ntiny\n--n-layer\n2\n--learning-rate=1e-3\n--optimizer\nadamw8\n--bias\nfalse\n--norm\nrms\n\
                 --positions\nrotary\n--threads\nauto\n--epochs\n1.5\n--data\nx.txt";
    let file = "# a run\npreset = \"reference\"\nn-layer = 3\nn_head = 4\nlearning_rate = 3e-4\ndata = [\"a\", 'b']\n\
                bias = false\ntokenizer = \"bpe:300\"\ngrad_clip = 0\nlr_schedule = \"wsd\"\nbatch_size = 4\n";
    let tuned =
        "version = 1\n[[set]]\ncpu = \"c\"\nisa = \"scalar\"\ndtype = \"f32\"\nthreads = 1\n";
    let adapters = "lora_rank = 4\nlora_alpha = 8.0\nlora_targets = \"q_proj,v_proj\"\nrope_theta = 1e5\n\
                    window = 16\nlogit_softcap = 30.0\nqk_norm = true\n";
    vec![
        ("config", "flags", joined(&[flags])),
        ("config", "file", joined(&["", file])),
        ("config", "all", joined(&["--recompute\n--prefetch\n2", file, tuned])),
        ("config", "parts", joined(&["--n-embd\n48\n--n-head\n6\n--n-kv-head\n2", adapters])),
    ]
}

/// Texts of several kinds.
pub(crate) fn texts() -> Vec<Seed> {
    let mixed = "\u{feff}In the beginning God created\r\n\r\nthe heaven \u{2003} and the \u{e9}arth. \u{1f600}\u{301}\n";
    vec![
        ("text", "plain", b"In the beginning God created the heaven and the earth.\n".repeat(8)),
        ("text", "mixed", mixed.as_bytes().to_vec()),
        ("text", "bytes", (0..=255_u8).rev().collect()),
        ("text", "one_word", vec![b'x'; 3000]),
    ]
}

/// Lines of examples, documents and questions.
pub(crate) fn lines() -> Vec<Seed> {
    let documents = "{\"text\": \"the sea\"}\n\n{\"id\": 1, \"text\": \"d\\u00e9j\\u00e0 \\ud83d\\ude00\"}\r\n{\"text\": \"\"}\n";
    let pairs = "{\"prompt\": \"2 + 2 =\", \"completion\": \" 4\"}\n\
                 {\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \"completion\": [{\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    let messages = format!("{}\n", CONVERSATION.replace('\n', " "));
    let shared = "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}]}\n";
    let questions = "{\"ctx\": \"The sea is\", \"endings\": [\"wet\", \"dry\"], \"label\": 0}\n\
                     {\"question\": \"Wet?\", \"choices\": {\"text\": [\"sea\", \"sun\"], \"label\": [\"A\", \"B\"]}, \"answerKey\": \"A\"}\n";
    [("documents", documents), ("pairs", pairs), ("messages", &messages), ("shared", shared)]
        .into_iter()
        .chain([("questions", questions)])
        .map(|(name, text)| ("lines", name, text.as_bytes().to_vec()))
        .collect()
}

/// Requests, some of them with a token (`t`).
pub(crate) fn requests() -> Vec<Seed> {
    let host = "Host: localhost:8080\r\n";
    let post = |path: &str, more: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\n{host}Content-Length: {length}\r\n{more}\r\n{body}")
    };
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\n{host}{more}\r\n");
    let (completions, chat) = ("/v1/completions", "/v1/chat/completions");
    let several = json!({"model": "model", "prompt": ["In", [1, 2, 299]], "max_tokens": 3, "n": 2, "seed": -1,
        "stop": ["x", "\n"], "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "logprobs": 2, "echo": true,
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1, "logit_bias": {"5": -100}});
    let streamed =
        json!({"prompt": "In", "stream": true, "stream_options": {"include_usage": true}});
    let talk: serde_json::Value = serde_json::from_str(CONVERSATION).unwrap();
    let talk = json!({"messages": talk["messages"], "tools": talk["tools"], "tool_choice": "auto", "n": 1,
        "logprobs": true, "top_logprobs": 1, "max_completion_tokens": 5, "response_format": {"type": "text"}});
    let chunked = format!(
        "POST {completions} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n{{\"pro\r\nb\r\nmpt\":\"In\"}}\r\n0\r\nx: y\r\n\r\n"
    );
    let several_requests =
        get("/health", "") + &get("/v1/models/model", "") + &get("/nothing%20there", "");
    let pages = get("/", "Accept: text/html\r\n")
        + &get("/api/runs.json", "Origin: http://localhost:8080\r\n");
    let preflight = format!(
        "OPTIONS {completions} HTTP/1.1\r\n{host}Origin: https://a.example\r\nAccess-Control-Request-Private-Network: true\r\n\r\n"
    );
    let bearer = "Authorization: Bearer s3cret-and-long\r\n";
    let expects = "Expect: 100-continue\r\nConnection: close\r\n";
    [
        ("several_requests", several_requests),
        ("pages", pages),
        ("completion", post(completions, "", &several.to_string())),
        ("stream", post(completions, expects, &streamed.to_string())),
        ("chat", post(chat, "Content-Type: application/json\r\n", &talk.to_string())),
        ("chunked", chunked),
        ("preflight", preflight),
        ("with_token", format!("t{}", post(completions, bearer, "{\"prompt\": \"a\"}"))),
        ("without_token", format!("t{}", post(completions, "Authorization: Basic eDp5\r\n", "{}"))),
        ("old", "GET /v1/models HTTP/1.0\r\n\r\n".to_owned()),
    ]
    .map(|(name, text)| ("http", name, text.into_bytes()))
    .into()
}

/// Templates as models have them, with a conversation each.
pub(crate) fn conversations() -> Vec<Seed> {
    let tools = "{%- if tools %}{{ '<tools>\\n' }}{%- for t in tools %}{{ t | tojson(indent=2) }}{%- endfor %}\
                 {{ '</tools>' }}{%- endif %}{%- for m in messages %}{%- if m.role == 'tool' %}{{ '[' ~ m.content.strip() ~ ']' }}\
                 {%- elif m.tool_calls is defined %}{%- for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}\
                 {%- endfor %}{%- else %}{{ m.role | upper }}: {{ m.content | trim }}{%- endif %}{{ eos_token }}{%- endfor %}";
    let checks = "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
                  {{ raise_exception('roles must alternate') }}{% endif %}{% set ns.n = ns.n + 1 %}{{ m.content[:20] }}{% endfor %}\
                  {{ strftime_now('%d %b %Y') }}{{ ns.n * 3 - 1 }}{{ range(3) | list | join(',') }}";
    let macros = "{% macro say(m, depth=1) -%}{{ m.role }}{{ ' ' * depth }}{{ m.content | default('-') | replace('a', 'b') }}{%- endmacro %}\
                  {% for m in messages if m.content %}{{ say(m, depth=loop.length) }}{% if loop.last %}{% break %}{% endif %}{% endfor %}\
                  {{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}";
    let short = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
    vec![
        ("template", "tools", joined(&[tools, CONVERSATION])),
        ("template", "checks", joined(&[checks, short])),
        ("template", "macros", joined(&[macros, short])),
    ]
}

/// Tokenizers of kinds that this program reads and does not make.
pub(crate) fn tokenizers() -> Vec<Seed> {
    let added = json!([{"id": 5, "content": "<|endoftext|>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false}]);
    let words = json!({"version": "1.0", "added_tokens": added, "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"the": 0, "sea": 1, "[UNK]": 2, "and": 3, "in": 4}, "unk_token": "[UNK]"}});
    let pieces = json!({"version": "1.0", "added_tokens": added, "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["\u{2581}", -1.0], ["\u{2581}the", -2.0], ["e", -3.5], ["in", -4.0]]}});
    let merges = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Split",
            "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)|."}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "ByteFallback"}, "model": {"type": "BPE", "vocab": {"t": 0, "h": 1, "e": 2, "th": 3, "the": 4},
            "merges": [["t", "h"], ["th", "e"]], "ignore_merges": true, "fuse_unk": false}});
    let wordpiece = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "the": 1, "##a": 2, "se": 3, "in": 4}}});
    [("words", words), ("pieces", pieces), ("merges", merges), ("wordpiece", wordpiece)]
        .map(|(name, json)| {
            ("tokenizer", name, [json.to_string().as_bytes(), b"the sea in the"].join(MARK))
        })
        .into()
}

/// Numbers of a model that the C interface trains, without parts that came later or with them: as `Numbers` of the target
/// takes them.
pub(crate) fn c_model(is_newer: bool) -> Vec<u8> {
    // No generator: the largest length that fits no memory, told by four bytes.
    let generator = [1, 0, 255, 255, 255, 255, 255];
    let sizes = [11, 8, 1, 2, 0, 4, 4, 0, 0];
    let truths = [1, 0, 0, 1, 0, 0, 0];
    let floats = [0, 1, 64, 0];
    // Squared ReLU, two previous tokens, embeddings twice as large.
    let later: &[u8] = if is_newer { &[3, 1, 2, 128, 0, 0, 0, 64] } else { &[1] };
    // A model of these numbers; two sequences of four tokens, one worker, training, best kernels, f32, AdamW; a seed.
    let plan = [2, 4, 1, 0, 0, 0, 0, 1, 2, 3, 4];
    let batch = |kind: u8| {
        let ids: Vec<u8> = (0..24).map(|n| n % 11).collect();
        [&[kind, 0][..], &ids, &[0, 0], &[0][..usize::from(kind == 2)]].concat()
    };
    let update = [4, 57, 60, 1, 57, 6, 64, 0, 1];
    let steps = [vec![0], batch(2), update.to_vec(), vec![5, 1], batch(3), vec![1]].concat();
    [&generator[..], &sizes, &truths, &floats, later, &plan, &steps].concat()
}

/// A file of llama.cpp whose model is that of no tensors, but whose keys are those of a tokenizer.
pub(crate) fn gguf_with_tokenizer() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let key = |name: &str, kind: u32, value: &[u8]| {
        [&text(name), &kind.to_le_bytes()[..], value].concat()
    };
    let list = |kind: u32, count: u64, items: Vec<u8>| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), &items].concat()
    };
    let texts =
        |all: &[&str]| list(8, all.len() as u64, all.iter().flat_map(|t| text(t)).collect());
    let whole = |n: u32| n.to_le_bytes();
    let keys = [
        key("general.architecture", 8, &text("llama")),
        key("llama.context_length", 4, &whole(8)),
        key("llama.embedding_length", 4, &whole(4)),
        key("llama.block_count", 4, &whole(1)),
        key("llama.feed_forward_length", 4, &whole(4)),
        key("llama.attention.head_count", 4, &whole(2)),
        key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes()),
        key("tokenizer.ggml.model", 8, &text("gpt2")),
        key("tokenizer.ggml.pre", 8, &text("gpt-2")),
        key("tokenizer.ggml.tokens", 9, &texts(&["a", "b", "ab", "<|endoftext|>"])),
        key(
            "tokenizer.ggml.token_type",
            9,
            &list(5, 4, [1, 1, 1, 3].map(i32::to_le_bytes).concat()),
        ),
        key("tokenizer.ggml.merges", 9, &texts(&["a b"])),
        key("tokenizer.ggml.eos_token_id", 4, &whole(3)),
        key("tokenizer.chat_template", 8, &text("{{ messages[0].content }}")),
    ];
    let tensor = |name: &str, dims: &[u64], at: u64| {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|n| n.to_le_bytes()).collect();
        let count = (dims.len() as u32).to_le_bytes();
        [&text(name), &count[..], &dims_bytes, &0_u32.to_le_bytes(), &at.to_le_bytes()].concat()
    };
    let square: [u64; 2] = [4, 4];
    let shapes: [(&str, &[u64]); 12] = [
        ("token_embd.weight", &square),
        ("output_norm.weight", &[4]),
        ("blk.0.attn_norm.weight", &[4]),
        ("blk.0.attn_q.weight", &square),
        ("blk.0.attn_k.weight", &square),
        ("blk.0.attn_v.weight", &square),
        ("blk.0.attn_output.weight", &square),
        ("blk.0.ffn_norm.weight", &[4]),
        ("blk.0.ffn_gate.weight", &square),
        ("blk.0.ffn_up.weight", &square),
        ("blk.0.ffn_down.weight", &square),
        ("output.weight", &square),
    ];
    let mut at = 0;
    let mut tensors = Vec::new();
    for (name, dims) in shapes {
        tensors.extend(tensor(name, dims, at));
        at += (4 * dims.iter().product::<u64>()).next_multiple_of(32);
    }
    let counts = [shapes.len() as u64, keys.len() as u64].map(u64::to_le_bytes).concat();
    let mut file = [b"GGUF", &3_u32.to_le_bytes()[..], &counts, &keys.concat(), &tensors].concat();
    file.resize(file.len().next_multiple_of(32) + at as usize, 0);
    file
}
