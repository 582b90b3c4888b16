//! A server as a child process, and clients that speak plain HTTP with it.
#![allow(dead_code, reason = "every test program uses a part of it")]

use core::time::Duration;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cli_support::{command, run_in, words};

/// How long anything may take.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Replies by a template that every tool and message ends with a line break.
const TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}\
    {{ m.role }}: {{ m.content if m.content is string else m.tool_calls | tojson }}\n{% endfor %}assistant:";

/// A folder with a run `out` whose model sees 2048 tokens and has a chat template.
pub(crate) fn trained() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        // Nobody drops it, so it is where the next run of the same tests finds it.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        train(&dir, "out", "--max-steps 20");
        let config = json!({ "chat_template": TEMPLATE }).to_string();
        fs::write(dir.join("out/tokenizer_config.json"), config).unwrap();
        dir
    })
}

/// A run in `dir` of a very small model.
pub(crate) fn train(dir: &Path, out: &str, flags: &str) {
    let verse = "In the beginning God created the heaven and the \u{e9}arth.\n";
    fs::write(dir.join("t.txt"), verse.repeat(120)).unwrap();
    let small = "train --data t.txt --tokenizer bytes --n-layer 1 --n-head 2 --n-embd 16 --norm rms \
                 --positions rotary --no-bias --block-size 2048 --batch-size 1 --sample-tokens 0 \
                 --seed 5 --threads 1 --quiet --val-fraction 0.4";
    run_in(dir, &words(&format!("{small} --out-dir {out} {flags}"))).done();
}

/// A server that is ended with the value.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    stdout: BufReader<ChildStdout>,
    errors: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Serves `out` in `dir` with these flags.
    pub(crate) fn start(dir: &Path, flags: &str) -> Self {
        Self::start_at(dir, "out", flags, &[])
    }

    /// Serves what is at `path`, in an environment with some more variables.
    pub(crate) fn start_at(dir: &Path, path: &str, flags: &str, env: &[(&str, &str)]) -> Self {
        let own = tempfile::tempdir().unwrap();
        let errors = own.path().join("stderr");
        let mut command = command(dir);
        command.args(words(&format!("serve {path} --port 0 {flags}"))).env_remove("CLLM_TOKEN");
        command.stdout(Stdio::piped()).stderr(File::create(&errors).unwrap());
        command.envs(env.iter().copied());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let told = || fs::read_to_string(&errors).unwrap();
        let (_, rest) = line.split_once("http://").unwrap_or_else(|| panic!("{line}{}", told()));
        let address = rest.split('/').next().unwrap().to_owned();
        let server = Self { child, address, stdout, errors, _dir: own };
        if !flags.contains("no-model") {
            server.wait_for("a model", |server| server.get("/health").status == 200);
        }
        server
    }

    /// Waits until `is` is so.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is(self) {
            assert!(begin.elapsed() < LONG, "waited in vain for {what}: {}", self.told());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it has said on standard error.
    pub(crate) fn told(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }

    /// The next line of standard output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal, and gives the exit code and all that was said.
    pub(crate) fn end(mut self, signal: &str) -> (i32, String) {
        self.signal(signal);
        let code = self.child.wait().unwrap().code().expect("ended by itself");
        (code, self.told())
    }

    pub(crate) fn signal(&self, signal: &str) {
        let kill = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    /// What comes back when `bytes` were sent, and no more are to come if `ends`.
    pub(crate) fn raw(&self, bytes: &[u8], ends: bool) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that has heard enough may close the connection before all is sent.
        let _ = stream.write_all(bytes);
        if ends {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], &body.to_string())
    }

    /// A completion.
    pub(crate) fn complete(&self, body: &Value) -> Value {
        let answer = self.post("/v1/completions", body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        Answer::of(&self.raw(&head(&self.address, method, path, headers, body), false))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request on a connection of its own. A `Host` among the headers takes the usual one's place.
pub(crate) fn head(host: &str, method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("Host:")) {
        text.push_str(&format!("Host: {host}\r\n"));
    }
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

/// A reply.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (headers, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = headers[9..12].parse().unwrap();
        let headers = headers.to_ascii_lowercase();
        let chunked = headers.contains("transfer-encoding: chunked");
        let body = if chunked { joined(body) } else { body.to_owned() };
        Self { status, headers, body }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// What OpenAI's clients are told: status, parameter, code and message.
    pub(crate) fn error(&self) -> (u16, Value, Value, String) {
        let error = &self.json()["error"];
        assert!(error["type"].is_string(), "{error}");
        let message = error["message"].as_str().unwrap().to_owned();
        (self.status, error["param"].clone(), error["code"].clone(), message)
    }

    /// The events of a stream, which ends as it should.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert!(self.headers.contains("text/event-stream"), "{}", self.headers);
        let mut events: Vec<&str> = self.body.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let event =
            |text: &str| serde_json::from_str(text.strip_prefix("data: ").unwrap()).unwrap();
        events.into_iter().map(event).collect()
    }
}

/// A body in chunks, the last of which must be there.
#[track_caller]
fn joined(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, more) = rest.split_once("\r\n").unwrap_or_else(|| panic!("cut off: {rest:?}"));
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.push_str(&more[..size]);
        rest = more[size..].strip_prefix("\r\n").unwrap();
    }
}
