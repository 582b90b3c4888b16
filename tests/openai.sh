#!/usr/bin/env bash
# Trains a small model, gives it a chat template, serves it with `cllm serve`, and asks for texts with the
# openai package as programs do: completions and replies, whole and streamed, errors, a hundred clients at
# once, and the page. Ends with an error if anything is not as that package's users expect.
#
# Usage: tests/openai.sh     (a minute, once tests/support/requirements-openai.txt is there)
#
# Needs Rust and Python 3.11 or newer with venv and pip, which install into target/openai. PYTHON names a
# Python that has what is wanted instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/openai
. tests/support/python.sh
want_python "$work" tests/support/requirements-openai.txt
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$work" <<'PYTHON'
import asyncio
import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai

cllm, work = str(Path(sys.argv[1]).resolve()), Path(sys.argv[2])
TOKEN = "a-token-of-this-test"
CLIENTS = 100
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"

run, text = work / "run", work / "text.txt"
shutil.rmtree(run, ignore_errors=True)
text.write_text("user: Who made the sea?\nassistant: God made the sea and the d\u00e9ep.\n" * 800)
train = [cllm, "train", "--data", text, "--tokenizer", "bpe:300", "--out-dir", run, "--n-layer", 2]
train += ["--n-embd", 64, "--n-head", 2, "--norm", "rms", "--positions", "rotary", "--no-bias"]
train += ["--block-size", 256, "--batch-size", 8, "--max-steps", 150, "--sample-tokens", 0, "--quiet"]
subprocess.run(list(map(str, train)), check=True)
(run / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def serve(path: Path, *flags: str, **env: str) -> tuple[subprocess.Popen, str]:
    """A server that ends with this program, and where it is."""
    command = [cllm, "serve", str(path), "--port", "0", "--log-format", "json", *flags]
    log = open(work / "log.jsonl", "w")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True,
                              env={**os.environ, **env})
    atexit.register(server.kill)
    # The rest is short enough to stay in the pipe, or nobody would read it.
    url = json.loads(server.stdout.readline())["url"]
    return server, url


def check(is_so: bool, *what: object) -> None:
    if not is_so:
        sys.exit("not as expected: " + " ".join(map(str, what)))


def refused(kind: type[openai.APIStatusError], call, part: str, **named) -> openai.APIStatusError:
    try:
        call(**named)
    except kind as error:
        check(part in error.message, named, error.message)
        return error
    sys.exit(f"{named} was not refused with {kind.__name__}")


server, url = serve(run, "--quiet", CLLM_TOKEN=TOKEN)
client = openai.OpenAI(base_url=url + "v1", api_key=TOKEN, max_retries=0)
while True:
    try:
        urllib.request.urlopen(url + "health")
        break
    except urllib.error.HTTPError as error:
        check(error.code == 503, error)
        time.sleep(0.05)

# Models.
models = client.models.list().data
check([model.id for model in models] == ["run"], models)
check(client.models.retrieve("run").step == 150, models)

# Completions.
ask = {"model": "run", "prompt": "user: Who", "max_tokens": 40, "temperature": 0}
whole = client.completions.create(**ask)
check(whole.choices[0].text.startswith(" made the sea?\nassistant: God"), whole)
check(whole.usage.completion_tokens == 40 and whole.choices[0].finish_reason == "length", whole)
chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
check("".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text, chunks)
check(chunks[-1].usage == whole.usage and len(chunks) > 10, chunks[-1])
stopped = client.completions.create(**ask, stop=["sea", "God"])
check(stopped.choices[0].text == " made the " and stopped.choices[0].finish_reason == "stop", stopped)
drawn = {**ask, "prompt": ["user:", "God"], "temperature": 1, "n": 2, "seed": 5, "logprobs": 2, "echo": True}
ours = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1}
several = client.completions.create(**drawn, extra_body=ours)
check(all(c.text.startswith("user:") for c in several.choices[:2]), several)
check(all(c.text.startswith("God") for c in several.choices[2:]), several)
check("".join(several.choices[0].logprobs.tokens).startswith("user:"), several.choices[0].logprobs)
again = client.completions.create(**drawn, extra_body=ours)
check([c.text for c in again.choices] == [c.text for c in several.choices], again)

# Conversations.
talk = {"model": "run", "messages": [{"role": "user", "content": "Who made the sea?"}], "temperature": 0}
reply = client.chat.completions.create(**talk, stop="\n", max_completion_tokens=50)
check(reply.choices[0].message.content == " God made the sea and the d\u00e9ep.", reply)
check(reply.choices[0].finish_reason == "stop" and reply.choices[0].message.role == "assistant", reply)
chunks = list(client.chat.completions.create(**talk, stop="\n", stream=True, logprobs=True, top_logprobs=2))
check(chunks[0].choices[0].delta.role == "assistant", chunks[0])
said = "".join(c.choices[0].delta.content or "" for c in chunks)
check(said == reply.choices[0].message.content, said)
check(chunks[-1].choices[0].finish_reason == "stop", chunks[-1])
with client.chat.completions.stream(**talk, stop="\n") as stream:
    check(stream.get_final_completion().choices[0].message.content == said, said)

# Errors.
create, chat = client.completions.create, client.chat.completions.create
refused(openai.NotFoundError, create, "gpt-4", **{**ask, "model": "gpt-4"})
refused(openai.NotFoundError, client.models.retrieve, "gpt-4", model="gpt-4")
refused(openai.NotFoundError, client.embeddings.create, "embeddings", model="run", input="x")
error = refused(openai.BadRequestError, create, "at a time", **{**ask, "max_tokens": 1000})
check(error.code == "context_length_exceeded" and error.param == "prompt", error)
error = refused(openai.BadRequestError, create, "0 or more", **{**ask, "temperature": -1})
check(error.param == "temperature", error)
refused(openai.BadRequestError, create, "a whole number", **ask, extra_body={"n": "three"})
refused(openai.BadRequestError, chat, "role", model="run", messages=[{"role": "cook", "content": "x"}])
# The template does not know them; what is called is in the messages.
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
called = [{"role": "assistant", "content": None, "tool_calls": [call]}]
called.append({"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "7"}]})
told = chat(**{**talk, "messages": talk["messages"] + called}, tools=[tool], tool_choice="auto", max_tokens=4)
check(told.choices[0].message.content is not None and told.choices[0].message.tool_calls is None, told)
refused(openai.BadRequestError, chat, "none are there", **talk, tools=[tool], tool_choice="required")
stranger = openai.OpenAI(base_url=url + "v1", api_key="wrong", max_retries=0)
refused(openai.AuthenticationError, stranger.models.list, "token")


# Many at once, each of which has what it would have alone.
def question(n: int) -> dict:
    return {**ask, "prompt": "user: Who made the sea?\n" * (1 + n % 5), "temperature": 1, "seed": n,
            "max_tokens": 20 + n % 20}


async def together() -> list[str]:
    many = openai.AsyncOpenAI(base_url=url + "v1", api_key=TOKEN, max_retries=0)

    async def one(n: int) -> str:
        if n % 2:
            return (await many.completions.create(**question(n))).choices[0].text
        stream = await many.completions.create(**question(n), stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    return await asyncio.gather(*map(one, range(CLIENTS)))


begin = time.time()
texts = asyncio.run(together())
took = time.time() - begin
for n, text in enumerate(texts):
    alone = client.completions.create(**question(n)).choices[0].text
    check(text == alone, n, repr(text), "alone", repr(alone))

# A stream that is left.
for chunk in client.completions.create(**{**ask, "max_tokens": 200}, n=100, stream=True):
    break
check(client.completions.create(**ask).choices[0].text == whole.choices[0].text, "after a stream was left")


# The page.
def page(path: str) -> str:
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


check("<html" in page("") and "script" in page(""), page("")[:200])
check(json.loads(page("api/runs.json"))["runs"][0]["name"] == "run", page("api/runs.json")[:200])

server.send_signal(signal.SIGINT)
check(server.wait(30) == 0, "exit status", server.returncode)
said = (work / "log.jsonl").read_text()
check(not re.search("internal error|" + TOKEN, said), said)

# A model without a template.
(run / "tokenizer_config.json").unlink()
server, url = serve(run / "best.cllm", "--quiet")
client = openai.OpenAI(base_url=url + "v1", api_key="none", max_retries=5)
refused(openai.BadRequestError, client.chat.completions.create, "no chat template", **{**talk, "model": "run-best"})
server.send_signal(signal.SIGTERM)
check(server.wait(30) == 0, "exit status", server.returncode)
print(f"openai {openai.__version__}: models, completions, conversations, streams, errors, and {CLIENTS} clients "
      f"at once in {took:.1f} s, each with the text that it has alone")
PYTHON
