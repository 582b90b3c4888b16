"""Looks at the pages of `cllm report`: see tests/report.sh. Arguments: the program, a browser, a folder."""

import json
import math
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

cllm, chromium, work = sys.argv[1], str(Path(sys.argv[2]).resolve()), Path(sys.argv[3]).resolve()
runs = work / "runs"
HOSTILE = "</script><img src=x onerror=\"alert('text')\"><b>&amp; 'quoted'"
NAME = "<img src=x onerror=alert('name')>"
LOOKS = {
    "wide-light": (1280, 900, "light"), "wide-dark": (1280, 900, "dark"),
    "phone-light": (390, 844, "light"), "phone-dark": (390, 844, "dark"),
}
CURVES = ["loss", "lr", "grad_norm", "tokens_per_s", "mfu", "utilisation", "data_wait"]
BARS = ["operations", "workers"]
OTHERS = {"utilisation-cells": ".cells rect", "parts": "path.area", "operations-over-time": "path.area"}


def must(holds, what):
    if not holds:
        sys.exit(f"report.sh: {what}")


def train(name, steps, *flags):
    command = [cllm, "train", "--out-dir", runs / name, "--data", work / "text.txt", "--max-steps", steps]
    command += ["--n-layer", 2, "--n-embd", 64, "--n-head", 2, "--block-size", 32, "--batch-size", 4, "--quiet"]
    command += ["--log-interval", 1, "--eval-interval", 10, "--sample-interval", 20, "--sample-tokens", 60, *flags]
    subprocess.run([str(word) for word in command], check=True)


def report(out, *names):
    command = [cllm, "report", *(runs / name for name in names), "--out", work / out]
    said = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
    must(said == f"{work / out}\n", f"cllm report said {said!r}")
    return (work / out).as_uri()


def events(name, kind):
    lines = (runs / name / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def long_run():
    """What a run of many steps and workers says, with texts that try to be more than text."""
    folder = runs / NAME
    folder.mkdir()
    start = dict(event="start", step=0, tokens_per_step=4096, parameters=10**8, threads=16, peak_gflops=2000.0,
                 config=dict(learning_rate=6e-4, n_layer=12, max_steps=30000, sample_prompt=HOSTILE))
    lines = [start]
    workers = [dict(busy=0.0, queue=0.0, steal=0.0, wait=0.0, data=0.0, rest=0.0) for _ in range(16)]
    operations = {"fc dX": 0.0, "attention backward": 0.0, "logits, loss and dlogits": 0.0, "optimizer": 0.0}
    for step in range(1, 20001):
        spike = 3.0 if step == 12345 else 0.0
        loss = 3 + 7 * math.exp(-step / 1500) + 0.1 * math.sin(step * 12.9898) + spike
        lines.append(dict(event="step", step=step, loss=loss, lr=6e-4 * min(1, step / 2000), grad_norm=1 + spike,
                          tokens_per_s=9000 + 500 * math.sin(step), mfu=0.31, data_wait=0.0, seconds=step * 0.45,
                          entropy=10 - loss))
        if step % 1000 == 0:
            for n, worker in enumerate(workers):
                share = 0.95 - 0.03 * ((n * 7 + step // 1000) % 9)
                worker["busy"] += 450 * share
                worker["wait"] += 450 * (1 - share) * 0.7
                worker["queue"] += 450 * (1 - share) * 0.3
            for n, name in enumerate(operations):
                operations[name] += 450 * 16 * 0.83 * [0.4, 0.3, 0.2, 0.1][n]
            lines.append(dict(event="work", step=step, step_seconds=step * 0.45, workers=workers, operations=operations))
            lines.append(dict(event="eval", step=step, val_loss=loss + 0.1, best=True, seconds=step * 0.45))
            lines.append(dict(event="sample", step=step, prompt=HOSTILE, text=HOSTILE + f" {step}"))
            # What has been said is not changed by what comes.
            lines[-3:] = json.loads(json.dumps(lines[-3:]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def until(page, holds, what):
    """Waits: not in the page, whose policy forbids that."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    must(False, what)


class Watched:
    """A page whose every complaint and request is noted."""

    def __init__(self, browser, look, allowed=()):
        width, height, scheme = LOOKS[look]
        self.context = browser.new_context(
            viewport=dict(width=width, height=height), color_scheme=scheme, has_touch=width < 500,
            device_scale_factor=2 if width < 500 else 1)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10000)
        self.wrong = []
        self.allowed = allowed
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self.request)

    def request(self, request):
        if not request.url.startswith(("data:", *self.allowed)):
            self.wrong.append(f"request: {request.url}")

    def open(self, address):
        self.allowed = (*self.allowed, address)
        self.page.goto(address)
        return self.page

    def close(self, what):
        self.context.close()
        must(not self.wrong, f"{what}: {self.wrong}")


# Labels of axes that overlap or leave the page, in words.
CLASHES = """() => {
  const found = [];
  for (const plot of document.querySelectorAll('svg.plot')) {
    const labels = [...plot.querySelectorAll('.ticks text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    const frame = plot.closest('figure').getBoundingClientRect();
    labels.forEach(([name, a], n) => {
      if (a.left < frame.left || a.right > frame.right) found.push(`${name} leaves ${plot.ariaLabel}`);
      for (const [other, b] of labels.slice(n + 1)) {
        if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom) found.push(`${name} and ${other} overlap`);
      }
    });
  }
  for (const element of document.querySelectorAll('h3, dd, dt, figcaption, .bar, .chip')) {
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== 'inline') found.push(`${element.textContent} is cut`);
  }
  return found;
}"""
DRAWN = """([figure, marks]) => [...document.querySelectorAll(`[data-figure="${figure}"] ${marks}`)].filter(mark => {
  const box = mark.getBoundingClientRect();
  return box.width > 0 && box.height > 0;
}).length"""
POINTS = """figure => [...document.querySelectorAll(`[data-figure="${figure}"] path.line`)]
  .map(path => [path.dataset.run, path.getAttribute('d').split(/[ML]/).length - 1, path.getBoundingClientRect().width])"""


def looks_right(page, look, drawn_runs, others=()):
    must(page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{look}: wider than the screen")
    clashes = page.evaluate(CLASHES)
    must(not clashes, f"{look}: {clashes}")
    must(page.locator("#page img, #page script, #page b b").count() == 0, f"{look}: text has become elements")
    for figure in [*CURVES, *others]:
        paths = page.evaluate(POINTS, figure)
        names = {name for name, points, width in paths if points > 5 and width > 100}
        wanted = set(drawn_runs) if figure not in others else names
        must(names and names >= wanted, f"{look}: {figure} is drawn of {paths}, not of {wanted}")
    for figure in BARS:
        must(page.evaluate(DRAWN, [figure, ".fill"]) >= 3, f"{look}: {figure} has no bars")
    for figure, marks in OTHERS.items():
        must(page.evaluate(DRAWN, [figure, marks]) >= 3, f"{look}: {figure} is not drawn")


def loss_tip(page):
    """What the loss chart's cursor tells: the step, and values by name."""
    tip = page.locator('[data-figure="loss"] .tip')
    must(tip.is_visible(), "the cursor tells nothing")
    step = int(tip.locator("caption").inner_text().split()[-1].replace(",", ""))
    rows = [row.inner_text().split("\t") for row in tip.locator("tr").all()]
    return step, {row[0].strip(): row[1].strip() for row in rows}


def controls(page):
    """The controls of a page about `first` and `second`."""
    loss = page.locator('[data-figure="loss"]')
    plot = loss.locator("svg.plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    by_step = {event["step"]: event["loss"] for event in events("first", "step")}
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    step, told = loss_tip(page)
    must(20 < step < 50, f"the cursor is at step {step}")
    must(told["first training"] == f"{by_step[step]:.4f}", f"{told} at {step}, not {by_step[step]}")
    page.screenshot(path=work / "hover.png")
    must(page.locator('[data-figure="lr"] .cursor').count() == 1, "other charts do not follow the cursor")
    page.mouse.move(5, 5)
    must(loss.locator(".tip").is_hidden(), "the cursor stays")
    # The keyboard.
    plot.focus()
    page.keyboard.press("Home")
    must(loss_tip(page)[0] == 1, "Home is not the first step")
    page.keyboard.press("ArrowRight")
    step, told = loss_tip(page)
    must(step == 2 and told["first training"] == f"{by_step[2]:.4f}", f"an arrow leads to {step}: {told}")
    page.keyboard.press("Escape")
    must(loss.locator(".tip").is_hidden(), "Escape leaves the cursor")
    # The legend.
    second = page.locator(".chip", has_text="second")
    second.focus()
    page.keyboard.press("Space")
    drawn = {name for name, _, _ in page.evaluate(POINTS, "loss")}
    must(drawn == {"first"} and second.get_attribute("aria-pressed") == "false", f"hidden, but drawn: {drawn}")
    second.click()
    must({name for name, _, _ in page.evaluate(POINTS, "loss")} == {"first", "second"}, "a run does not come back")
    for chip in page.locator(".chip").all():
        chip.click()
    must(page.locator("figure .none:visible").count() == len(CURVES) + len(BARS) + len(OTHERS), "nothing to show is not said")
    for chip in page.locator(".chip").all():
        chip.click()
    # Smoothing.
    shape = "() => [...document.querySelectorAll('[data-figure=loss] path.line')].map(path => path.getAttribute('d'))"
    before = page.evaluate(shape)
    page.locator("#smoothing").fill("0")
    must(len(page.evaluate(shape)) == len(before) - 2, "smoothing does not go")
    page.locator("#smoothing").fill("1")
    strong = page.evaluate(shape)
    must(len(strong) == len(before) and strong != before, "smoothing does nothing")
    page.locator("#smoothing").fill("0.3")
    must(page.evaluate(shape) == before, "smoothing depends on what it was before")
    # The axes.
    loss.locator("button", has_text="log").click()
    must(page.evaluate(shape) != before, "a logarithmic axis is as the linear one")
    loss.locator("button", has_text="log").click()
    must(page.evaluate(shape) == before, "the linear axis does not come back")
    ticks = "() => [...document.querySelectorAll('[data-figure=loss] .ticks text')].map(text => text.textContent)"
    for name, sign in [("Tokens", "k"), ("Time", " s"), ("Steps", "60")]:
        page.locator(".segments label", has_text=name).click()
        must(any(tick.endswith(sign) for tick in page.evaluate(ticks)), f"{name}: {page.evaluate(ticks)}")
        must(not page.evaluate(CLASHES), f"{name}: {page.evaluate(CLASHES)}")
    # Zoom.
    box = plot.bounding_box()
    at = [(box["x"] + box["width"] * x, box["y"] + 100) for x in (0.5, 0.8)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()
    zoomed = page.evaluate(ticks)
    must("0" not in zoomed and "40" in zoomed, f"not zoomed: {zoomed}")
    page.locator("button", has_text="Reset zoom").click()
    must(page.evaluate(shape) == before, "the zoom does not go")
    # The table of values.
    loss.locator("summary").click()
    rows = loss.locator(".values tbody tr")
    rows.first.wait_for()
    must(rows.count() == 60, f"{rows.count()} values")
    first = float(rows.first.locator("td").first.inner_text())
    must(abs(first - by_step[1]) < 1e-5, f"{first} in the table, not {by_step[1]}")
    loss.locator("summary").click()
    # Samples.
    samples = events("first", "sample")
    card = page.locator('.sample[data-run="first"]')
    must(card.locator("pre").text_content() == samples[-1]["text"], "the newest sample is not shown")
    card.locator("input").fill("0")
    must(card.locator("pre").text_content() == samples[0]["text"], "the first sample is not shown")
    must([sample["step"] for sample in samples] == [20, 40, 60], f"samples of {samples}")
    # The operations that are not among the longest.
    bars = page.locator('[data-figure="operations"] tbody tr')
    few = bars.count()
    page.locator("button", has_text="Show all").click()
    must(bars.count() > few, "the other operations do not show")
    # Tables.
    differs = page.locator("#differences tr", has_text="learning_rate").inner_text()
    must("0.003" in differs and "0.001" in differs, f"differences: {differs}")
    for told in page.locator("details.folded").all():
        told.locator("summary").click()
    words = page.locator("#settings").text_content()
    for wanted in ["sample_interval", "planned_bytes.total", "blocking.", "weights_sha256", "workers.0.cpu_seconds",
                   "step.grad_norm", "resumed", "cpus_allowed", "peak_rss_bytes"]:
        must(wanted in words, f"no {wanted} in the tables")
    must(page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "tables are wider than the screen")


def live(browser, early, late):
    """The page of a run under way, from a server that gives it news and then goes away."""
    page_text = early.read_text().replace('data-live=""', 'data-live="live"')
    page_text = page_text.replace("form-action 'none'\"", "form-action 'none'; connect-src 'self'\"")
    data = [path.read_text().split('id="data">')[1].split("</script>")[0] for path in (early, late)]
    served = {"/": page_text, "/api/runs.json": data[0]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            text = served.get(self.path)
            self.send_response(200 if text else 404)
            self.send_header("Content-Type", "application/json" if self.path.endswith("json") else "text/html")
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    watched = Watched(browser, "wide-light", (address + "api/runs.json",))
    page = watched.open(address)
    must(page.locator(".live").inner_text() == "live", "not live")
    page.locator("#smoothing").fill("0.8")
    page.locator(".segments label", has_text="Tokens").click()
    page.locator('[data-figure="loss"] summary').click()
    page.locator("details.folded summary").first.click()
    page.locator(".chip").first.focus()
    points = lambda: [count for _, count, _ in page.evaluate(POINTS, "grad_norm")]
    must(points() == [30], f"{points()} points")
    served["/api/runs.json"] = data[1]
    until(page, lambda: points() == [60], "no news")
    kept = page.evaluate("""() => [document.getElementById('smoothing').value, document.querySelector('.segments input:checked').value,
      document.querySelectorAll('details[open]').length, document.activeElement.className]""")
    must(kept == ["0.8", "tokens", 2, "chip"], f"news has changed the controls: {kept}")
    rows = page.locator('[data-figure="loss"] .values tbody tr').count()
    must(rows == 60, f"the open table has {rows} rows")
    page.screenshot(path=work / "live.png")
    must(not watched.wrong, f"live: {watched.wrong}")
    server.shutdown()
    server.server_close()
    until(page, lambda: page.locator(".live").inner_text() == "connection lost", "a lost connection is not told")
    must(points() == [60], "what was there goes with the connection")
    watched.context.close()


shutil.rmtree(runs, ignore_errors=True)
runs.mkdir(parents=True)
(work / "text.txt").write_text("In the beginning was the word, and the word was with the others.\n" * 1000)
train("first", 30, "--threads", 2)
report("early.html", "first")
train("first", 60, "--resume")
train("second", 60, "--threads", 1, "--learning-rate", 1e-3)
long_run()
(runs / "old").mkdir()
(runs / "old" / "metrics.jsonl").write_text('{"event":"step","step":1,"loss":5.5}\n')
(runs / "begun").mkdir()
(runs / "begun" / "settings.json").write_text('{"max_steps":9}')
pages = {
    "one": (report("one.html", "first"), ["first"], []),
    "two": (report("two.html", "first", "second"), ["first", "second"], []),
    "long": (report("long.html", NAME), [NAME], ["step.entropy"]),
}
must((work / "long.html").stat().st_size < 1_500_000, "the page of a long run is large")
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium)
    for name, (address, drawn, others) in pages.items():
        for look in LOOKS:
            watched = Watched(browser, look)
            page = watched.open(address)
            page.wait_for_timeout(100)
            must(not watched.wrong, f"{name}, {look}: {watched.wrong}")
            looks_right(page, f"{name}-{look}", drawn, others)
            page.screenshot(path=work / f"{name}-{look}.png", full_page=True)
            if name == "long":
                must("up to 20,000" in page.locator("#curves").inner_text(), "not told that points are left out")
            if name == "two" and look == "wide-light":
                controls(page)
            if name == "one" and look == "phone-light":
                place = page.locator('[data-figure="loss"] svg.plot')
                place.scroll_into_view_if_needed()
                box = place.bounding_box()
                page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 150)
                must(20 < loss_tip(page)[0] < 40, "a finger moves no cursor")
                page.screenshot(path=work / "touch.png")
            watched.close(f"{name}, {look}")
    # Runs that have said next to nothing, and nothing.
    for name, least in [("old", 9), ("begun", 13)]:
        watched = Watched(browser, "phone-dark")
        page = watched.open(report(f"{name}.html", name))
        missing = page.locator(".none:visible").count()
        must(missing >= least, f"{name}: {missing} figures say that they are missing")
        watched.close(name)
    live(browser, work / "early.html", work / "one.html")
    browser.close()
print(f"the pages are drawn in {len(LOOKS)} looks and do what they should; pictures are in {work}")
