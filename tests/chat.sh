#!/usr/bin/env bash
# Talks with `cllm generate --interactive` on a terminal of its own: what Ctrl-C does during a reply, between
# replies, and to a program that hangs. Ends with an error if that is not what the guide says.
#
# Usage: tests/chat.sh     (seconds, once cllm is built)
#
# Needs Rust and Python 3, nothing but its own library. CLLM names a built program instead of building one: with
# optimisation, or its training takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/program.sh
work=target/chat
rm -rf "$work"
mkdir -p "$work"
# A model that goes on until its context of 4,096 bytes is full, which takes seconds.
for _ in $(seq 1000); do echo -n "and on "; done > "$work/text.txt"
"$CLLM" train --data "$work/text.txt" --tokenizer bytes --n-layer 4 --n-head 4 --n-embd 256 --block-size 4096 \
    --batch-size 1 --max-steps 1 --val-fraction 0 --sample-tokens 0 --quiet --out-dir "$work/run"
echo '{"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}' > "$work/run/tokenizer_config.json"
exec python3 - "$CLLM" "$work/run" <<'PYTHON'
import os
import pty
import select
import signal
import sys
import time

cllm, run = sys.argv[1:]
CTRL_C = b"\x03"


class Talk:
    """A conversation on a terminal."""

    def __init__(self):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            arguments = ["--greedy", "--tokens", "4000", "--threads", "1"]
            os.execv(cllm, [cllm, "generate", "--checkpoint", run, "--interactive", *arguments])
        self.seen = b""

    def see(self, wanted: bytes, seconds: float = 60) -> bytes:
        """Reads until the terminal shows something, and gives what it showed before."""
        end = time.monotonic() + seconds
        while wanted not in self.seen:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.terminal], [], [], left)[0]:
                sys.exit(f"no {wanted!r} within {seconds} s; seen {self.seen[-200:]!r}")
            try:
                self.seen += os.read(self.terminal, 65536)
            except OSError:
                sys.exit(f"ended before {wanted!r}; seen {self.seen[-200:]!r}")
        before, self.seen = self.seen.split(wanted, 1)
        return before

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def code(self) -> int:
        """How it ended, within a minute."""
        for _ in range(600):
            try:
                while select.select([self.terminal], [], [], 0)[0] and os.read(self.terminal, 65536):
                    pass
            except OSError:
                pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
        os.kill(self.pid, signal.SIGKILL)
        sys.exit("it does not end")


def expect(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        sys.exit(f"{what}: ended with {found}, not {wanted}")
    print(f"{what}: ended with {found}")


talk = Talk()
talk.see(b"> ")
for word in (b"one", b"two"):
    # What is typed is shown, and then the reply begins.
    talk.type(word + b"\n")
    talk.see(word + b"\r\n")
    while not talk.seen:
        talk.seen += os.read(talk.terminal, 65536)
    talk.type(CTRL_C)
    reply = talk.see(b"\r\n> ").decode()
    # All of one has some 4,000.
    if len(reply) > 3500:
        sys.exit(f"a reply of {len(reply)} characters was not stopped")
talk.type(b"/exit\n")
expect("two replies stopped, then /exit", talk.code(), 0)

talk = Talk()
talk.see(b"> ")
talk.type(CTRL_C)
expect("Ctrl-C instead of a message", talk.code(), 130)

talk = Talk()
talk.see(b"> ")
talk.type(b"three\n")
talk.see(b"three\r\n")
while not talk.seen:
    talk.seen += os.read(talk.terminal, 65536)
os.kill(talk.pid, signal.SIGTERM)
expect("SIGTERM during a reply", talk.code(), -signal.SIGTERM)
PYTHON
