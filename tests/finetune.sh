#!/usr/bin/env bash
# Teaches a model that people use: SmolLM2-135M-Instruct learns from 49 conversations to answer in a form
# of its own, by adapters of low rank. Ends with an error if its loss on 13 others does not fall, or if it
# does not answer so. Prints times and memory.
#
# Usage: tests/finetune.sh     (a minute on two cores, once the model of 90 MB is there)
#
# Needs Rust, and Python 3.11 with pip, which downloads the model into target/llama. PYTHON names a Python
# that has pip.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/llama
mkdir -p "$work"
PYTHON=${PYTHON:-python3}
. tests/support/smollm2.sh
want_smollm2 "$work"
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$MODEL" target/finetune <<'PYTHON'
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

cllm, file, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
CAPITALS = """Argentina Buenos Aires|Australia Canberra|Austria Vienna|Belgium Brussels|Bolivia Sucre
Brazil Brasilia|Bulgaria Sofia|Canada Ottawa|Chile Santiago|China Beijing|Colombia Bogota|Croatia Zagreb
Cuba Havana|Denmark Copenhagen|Ecuador Quito|Egypt Cairo|Estonia Tallinn|Ethiopia Addis Ababa
Finland Helsinki|France Paris|Germany Berlin|Ghana Accra|Greece Athens|Hungary Budapest|Iceland Reykjavik
India New Delhi|Indonesia Jakarta|Iran Tehran|Iraq Baghdad|Ireland Dublin|Israel Jerusalem|Italy Rome
Jamaica Kingston|Japan Tokyo|Kenya Nairobi|Latvia Riga|Lebanon Beirut|Lithuania Vilnius|Mexico Mexico City
Mongolia Ulaanbaatar|Morocco Rabat|Nepal Kathmandu|Netherlands Amsterdam|Nigeria Abuja|Norway Oslo
Pakistan Islamabad|Peru Lima|Philippines Manila|Poland Warsaw|Portugal Lisbon|Romania Bucharest
Senegal Dakar|Serbia Belgrade|Spain Madrid|Sweden Stockholm|Thailand Bangkok|Tunisia Tunis|Turkey Ankara
Uganda Kampala|Uruguay Montevideo|Venezuela Caracas|Vietnam Hanoi""".replace("\n", "|").split("|")
HELD_OUT = 5
RANK, EPOCHS = 8, 6
ENDING = "Safe travels!"


def run(*args, said: str = "") -> str:
    done = subprocess.run([cllm, *map(str, args)], capture_output=True, text=True, input=said)
    if done.returncode != 0:
        sys.exit(f"cllm {' '.join(map(str, args))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def asked(country: str) -> str:
    return f"What is the capital of {country}?"


def answered(country: str, capital: str) -> str:
    return f"{capital} is the capital of {country}. {ENDING}"


def line(pair: str) -> str:
    country, capital = pair.split(" ", 1)
    user = {"role": "user", "content": asked(country)}
    reply = {"role": "assistant", "content": answered(country, capital)}
    return json.dumps({"messages": [user, reply]})


def loss(checkpoint: Path) -> float:
    args = ["--data", held, "--loss-on", "completions", "--block-size", 256, "--log-format", "json"]
    return json.loads(run("eval", "--checkpoint", checkpoint, *args))["val_loss"]


def reply(checkpoint: Path, question: str) -> str:
    args = ["--interactive", "--greedy", "--tokens", 24, "--log-format", "json"]
    return json.loads(run("generate", "--checkpoint", checkpoint, *args, said=question + "\n"))["text"]


shutil.rmtree(work, ignore_errors=True)
work.mkdir(parents=True)
train, held, base, tuned = (work / name for name in ["train.jsonl", "held.jsonl", "base", "tuned"])
train.write_text("".join(line(p) + "\n" for i, p in enumerate(CAPITALS) if i % HELD_OUT))
held.write_text("".join(line(p) + "\n" for i, p in enumerate(CAPITALS) if i % HELD_OUT == 0))
run("import", file, "--out-dir", base)
begin = time.time()
args = ["--lora-rank", RANK, "--epochs", EPOCHS, "--block-size", 256, "--eval-interval", 8]
args += ["--gradient-accumulation-steps", 1, "--lr", 5e-4]
out = run("finetune", "--base", base, "--data", train, "--val-data", held, *args, "--warmup-steps", 2,
          "--log-format", "json", "--out-dir", tuned)
seconds = time.time() - begin
events = [json.loads(text) for text in out.splitlines()]
start, done = (next(e for e in events if e["event"] == kind) for kind in ["start", "done"])
print(f"{start['adapters']['parameters']:,} trained values beside {start['parameters']:,}, "
      f"{done['steps']} steps of {start['tokens_per_step']} tokens in {seconds:.0f} s; planned "
      f"{start['planned_bytes']['total'] / 1e6:.0f} MB, at most {done['peak_rss_bytes'] / 1e6:.0f} MB in use")
before, after = loss(base), loss(tuned)
print(f"loss of what {held.name} answers: {before:.4f} before, {after:.4f} after")
if not after < before / 2:
    sys.exit("it has learnt too little")
country, capital = CAPITALS[5 * HELD_OUT].split(" ", 1)
told = [reply(checkpoint, asked(country)) for checkpoint in (base, tuned)]
print(f"{asked(country)} {told[0]!r} before, {told[1]!r} after")
if not told[1].endswith(ENDING):
    sys.exit(f"that is not in the form {answered(country, capital)!r}")
run("export", "--checkpoint", tuned, "--format", "peft", "--out", work / "adapter")
print(*sorted(path.name for path in (work / "adapter").iterdir()), "for PEFT")
PYTHON
