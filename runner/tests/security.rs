//! What `SECURITY.md` promises of files and of the server, and has no test elsewhere: links in a run folder that came
//! from anybody, permissions of what is written, settings that name other places, and who reaches a server.

mod cli_support;
#[cfg(feature = "serve")]
mod serve_support;

use std::fs;
use std::path::Path;

use cli_support::{run_in, words};

const TRAIN: &str = "train --data t.txt --tokenizer bytes --n-layer 1 --n-embd 8 --n-head 2 --block-size 8 \
                     --batch-size 2 --max-steps 2 --warmup-steps 0 --val-fraction 0.1 --sample-tokens 0 --threads 1 \
                     --tuning off --quiet --out-dir run";

fn with_text() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = "In the beginning God created the heaven and the earth. ";
    fs::write(dir.path().join("t.txt"), text.repeat(10)).unwrap();
    dir
}

/// All that is below a folder, links not followed: names and bytes.
fn all_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            all.extend(all_of(&path));
            all.push((name, Vec::new()));
        } else {
            all.push((name, fs::read(&path).unwrap_or_default()));
        }
    }
    all.sort();
    all
}

#[cfg(unix)]
#[test]
fn links_in_a_run_folder_lead_nowhere() {
    use std::os::unix::fs::symlink;
    let with_board = if cfg!(feature = "report") { " --tensorboard" } else { "" };
    let train = format!("{TRAIN}{with_board}");
    let train = words(&train);
    let refused = [".lock", "metrics.jsonl", "data", "tensorboard"];
    let names = [
        "settings.json",
        "settings.json.tmp",
        "tokenizer.json",
        "tokenizer.json.tmp",
        "best.cllm",
        "best.cllm.tmp",
        "step-2.cllm",
        "step-2.cllm.tmp",
        "data/meta.json",
        "data/meta.json.tmp",
        "data/train_000000.bin",
        "data/train_000000.bin.tmp",
        "data/train_000000.bin.sums.tmp",
    ];
    for (name, is_there) in names.into_iter().chain(refused).flat_map(|n| [(n, true), (n, false)]) {
        let dir = with_text();
        let other = dir.path().join("other");
        fs::create_dir_all(other.join("file.d")).unwrap();
        fs::write(other.join("file"), "somebody's\n").unwrap();
        fs::write(other.join("train_000000.bin"), "somebody's").unwrap();
        let before = all_of(&other);
        let link = dir.path().join("run").join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let is_folder = ["data", "tensorboard"].contains(&name);
        let target = match (is_there, is_folder) {
            (true, true) => other.clone(),
            (true, false) => other.join("file"),
            // One that is made where there is nothing yet would be as bad.
            (false, _) => other.join("new"),
        };
        symlink(target, &link).unwrap();
        let ran = run_in(dir.path(), &train);
        assert!(all_of(&other) == before, "{name}: what the link points at was changed");
        if refused.contains(&name) && (name != "tensorboard" || !with_board.is_empty()) {
            ran.refused(1, &[name, "a link"]);
        } else {
            assert!(ran.code == 0 || ran.failed().contains("run"), "{name}: {}", ran.stderr);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_goes_on_follows_no_link_either() {
    use std::os::unix::fs::symlink;
    for name in ["metrics.jsonl", ".lock"] {
        let dir = with_text();
        run_in(dir.path(), &words(TRAIN)).done();
        let link = dir.path().join("run").join(name);
        fs::remove_file(&link).unwrap();
        fs::write(dir.path().join("other"), "somebody's\n").unwrap();
        symlink("../other", &link).unwrap();
        let resume = TRAIN.replace("--max-steps 2", "--max-steps 4 --resume");
        run_in(dir.path(), &words(&resume)).refused(1, &[name, "a link"]);
        assert_eq!(fs::read(dir.path().join("other")).unwrap(), b"somebody's\n");
    }
}

#[cfg(unix)]
#[test]
fn files_are_the_users_as_far_as_the_umask_says() {
    use std::os::unix::fs::PermissionsExt as _;
    for (mask, of_file, of_folder) in
        [("077", 0o600, 0o700), ("022", 0o644, 0o755), ("000", 0o666, 0o777)]
    {
        let dir = with_text();
        let script = format!("umask {mask}; exec \"$@\"");
        let mut child = std::process::Command::new("sh");
        child.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_cllm")]).args(words(TRAIN));
        assert!(child.current_dir(dir.path()).status().unwrap().success());
        for (path, _) in all_of(&dir.path().join("run")) {
            let about = fs::metadata(&path).unwrap();
            let wanted = if about.is_dir() { of_folder } else { of_file };
            assert_eq!(about.permissions().mode() & 0o7777, wanted, "umask {mask}: {path}");
        }
    }
}

#[test]
fn settings_of_a_run_do_not_say_where_is_written() {
    let dir = with_text();
    let (at, elsewhere) = (|name: &str| dir.path().join(name), dir.path().join("elsewhere"));
    run_in(dir.path(), &words(TRAIN)).done();
    fs::create_dir(&elsewhere).unwrap();
    let text = fs::read_to_string(at("run/settings.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    settings["out_dir"] = elsewhere.join("run").display().to_string().into();
    settings["trace"] = elsewhere.join("trace.json").display().to_string().into();
    settings["max_steps"] = 4.into();
    settings.as_object_mut().unwrap().remove("crc32");
    fs::write(at("run/settings.json"), settings.to_string()).unwrap();
    run_in(dir.path(), &words("train --resume --out-dir run --quiet")).done();
    assert!(at("run/step-4.cllm").exists());
    assert_eq!(all_of(&elsewhere), []);
}

#[cfg(feature = "serve")]
mod of_the_server {
    use super::*;
    use crate::serve_support::{LONG, Server, head, trained};
    use core::time::Duration;
    use std::io::{ErrorKind, Read as _, Write as _};

    /// As many as `serve/http.rs` has.
    const CONNECTIONS: usize = 512;

    #[test]
    fn only_this_machine_reaches_it_unless_told() {
        let server = Server::start(trained(), "--quiet");
        assert!(server.address.starts_with("127.0.0.1:"), "{}", server.address);
        let flags = "serve out --host 0.0.0.0 --port 0";
        run_in(trained(), &words(flags)).refused(2, &["--host 0.0.0.0", "--token-file"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_with_a_token_has_an_end() {
        let serve = |file: &str| {
            let flags = format!("serve out --port 0 --token-file {file}");
            run_in(trained(), &words(&flags)).refused(1, &[file, "more than 4096 bytes"]);
        };
        serve("/dev/zero");
        fs::write(trained().join("long"), "x".repeat(4097)).unwrap();
        serve("long");
    }

    #[test]
    fn more_connections_than_there_are_seats_wait() {
        let server = Server::start(trained(), "--quiet");
        let mut seats: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut seat = server.connect();
                seat.write_all(b"GET /hea").unwrap();
                seat
            })
            .collect();
        let mut waits = server.connect();
        waits
            .write_all(&head(&server.address, "GET", "/health", &["Connection: close"], ""))
            .unwrap();
        waits.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut reply = [0; 12];
        let early = waits.read_exact(&mut reply).unwrap_err().kind();
        assert!(matches!(early, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{early}");
        drop(seats.pop());
        waits.set_read_timeout(Some(LONG)).unwrap();
        waits.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"HTTP/1.1 200");
    }

    #[test]
    fn what_requests_bring_along_is_not_logged() {
        for format in ["text", "json"] {
            let mut server = Server::start_at(
                trained(),
                "out",
                &format!("--log-format {format}"),
                &[("CLLM_TOKEN", "s3cret-and-long")],
            );
            let asks = ["Authorization: Bearer s3cret-and-long", "Cookie: s3cret-and-long"];
            let body = "{\"prompt\": \"s3cret-and-long\", \"max_tokens\": 1}";
            assert_eq!(
                server.ask("POST", "/v1/completions?key=s3cret-and-long", &asks, body).status,
                200
            );
            assert_eq!(server.ask("GET", "/health?key=s3cret-and-long", &[], "").status, 200);
            let mut lines = String::new();
            while format == "json" && !lines.contains("/v1/completions") {
                lines += &server.line();
            }
            let (code, told) = server.end("-INT");
            let told = lines + &told;
            assert_eq!(code, 0, "{told}");
            assert!(told.contains("/v1/completions") && !told.contains("s3cret"), "{told}");
        }
    }
}
