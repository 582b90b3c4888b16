"""Runs the commands of standard input in a terminal and records what that shows, as asciinema's version 2.

Arguments: the folder to run them in, the file to write. Part of docs/recording.sh. Commands are typed by
nobody, but shown as if: everything else is what the programs say, when they say it.
"""

import codecs
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time

COLUMNS, ROWS = 110, 26
KEY_SECONDS, ENTER_SECONDS, READ_SECONDS = 0.03, 0.4, 1.5

folder, out = sys.argv[1], sys.argv[2]
events = []
shift = -time.monotonic()


def show(text):
    events.append([round(time.monotonic() + shift, 3), "o", text])


def pretend(seconds):
    """Time passes in the recording, not here."""
    global shift
    shift += seconds


def run(command):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    program = subprocess.Popen(["bash", "-c", command], cwd=folder, stdin=follower, stdout=follower, stderr=follower,
                               env={**os.environ, "TERM": "xterm", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)})
    os.close(follower)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        try:
            said = os.read(leader, 65536)
        except OSError:  # so Linux says that nobody is at the other end any more
            said = b""
        if not said:
            break
        show(decoder.decode(said))
    os.close(leader)
    if program.wait() != 0:
        sys.exit(f"record.py: {command}: exit status {program.returncode}")


for command in filter(None, sys.stdin.read().splitlines()):
    show("$ ")
    pretend(ENTER_SECONDS)
    for key in command:
        show(key)
        pretend(KEY_SECONDS)
    pretend(ENTER_SECONDS)
    show("\r\n")
    run(command)
    pretend(READ_SECONDS)
show("$ ")
with open(out, "w", encoding="utf-8") as file:
    header = dict(version=2, width=COLUMNS, height=ROWS, idle_time_limit=1.0, title="cllm trains a small model")
    file.write(json.dumps(header) + "\n")
    file.writelines(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
