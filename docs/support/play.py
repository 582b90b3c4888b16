"""Makes an animated SVG of a recording of a terminal. Arguments: the recording (asciinema 2), the SVG.

Part of docs/recording.sh. Plays the recording on a screen that knows what `cllm` writes to terminals: text, ends of
lines, and progress that erases and moves up; no colours, no cursor. Whatever has stood in a row is a text of the
picture, visible as long as it stood there, and all of them move up as the screen does, by CSS alone, over and over.
Who wants nothing to move sees the end.
"""

import json
import re
import sys
from xml.sax.saxutils import escape

CELL, LINE, PAD = 8.4, 18, 14
TICK, END_SECONDS = 0.06, 6.0
STYLE = """text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;
fill:#d8dee9;white-space:pre}
.c{fill:#a3d98b}
g,text{animation:0s step-end infinite}"""
PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x00-\x1f]+)|(.)", re.DOTALL)


class Screen:
    """Rows from the first to the last that there ever was: what has moved off the top only counts as `top`."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.lines = [""]
        self.top = self.row = self.column = 0

    def go_down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")
        self.top = max(self.top, self.row - self.rows + 1)

    def write(self, text):
        while text:
            if self.column == self.columns:
                self.go_down()
                self.column = 0
            fits, text = text[: self.columns - self.column], text[self.columns - self.column :]
            line = self.lines[self.row].ljust(self.column)
            self.column += len(fits)
            self.lines[self.row] = line[: self.column - len(fits)] + fits + line[self.column :]

    def control(self, count, letter):
        if letter == "K" and count == "2":
            self.lines[self.row] = ""
        elif letter == "K" and count in ("", "0"):
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif letter == "J" and count in ("", "0"):
            self.lines[self.row] = self.lines[self.row][: self.column]
            self.lines[self.row + 1 :] = []
        elif letter == "A":
            self.row = max(self.top, self.row - int(count or 1))
        elif letter == "B":
            for _ in range(int(count or 1)):
                self.go_down()
        elif letter not in "m" and (count, letter) not in (("?25", "l"), ("?25", "h")):
            sys.exit(f"play.py: ESC [ {count}{letter} is not known here")

    def play(self, text):
        for count, letter, end, words, other in PARTS.findall(text):
            if letter:
                self.control(count, letter)
            elif end == "\r":
                self.column = 0
            elif end:
                self.go_down()
            elif words:
                self.write(words)
            elif other == "\x1b":
                sys.exit(f"play.py: {text!r} has an escape that is not known here")
            # Other control characters, which a model of bytes may say, show nothing.


with open(sys.argv[1], encoding="utf-8") as file:
    header, *events = map(json.loads, file)
screen = Screen(header["width"], header["height"])
# Versions of rows: from when, until when (None: for ever), which row, what.
standing, versions, scrolls = {}, [], []
now = last = 0.0


def look():
    """Notes what has changed on the screen."""
    at = round(now / TICK) * TICK
    for place in range(max(len(screen.lines), max(standing, default=0) + 1)):
        line = screen.lines[place].rstrip() if place < len(screen.lines) else ""
        before = standing.get(place)
        if before and before[3] == line:
            continue
        if before:
            before[1] = at
        standing.pop(place, None)
        if line:
            standing[place] = [at, None, place, line]
            versions.append(standing[place])
    if screen.top > (scrolls[-1][1] if scrolls else 0):
        scrolls.append((at, screen.top))


for time, _, text in events:
    now += min(time - last, header["idle_time_limit"])
    last = time
    screen.play(text)
    look()
seconds = now + END_SECONDS
versions = [version for version in versions if version[0] != version[1]]


def percent(time):
    return f"{100 * time / seconds:.2f}%"


spans = sorted({(begin, end) for begin, end, _, _ in versions}, key=lambda span: (span[0], span[1] or seconds))
css = [STYLE]
for n, (begin, end) in enumerate(spans):
    gone = f"{percent(end)}{{visibility:hidden}}" if end is not None else ""
    css.append(f"@keyframes k{n}{{0%{{visibility:hidden}}{percent(begin)}{{visibility:visible}}{gone}}}")
    css.append(f".k{n}{{animation-name:k{n}{';visibility:hidden' if end is not None else ''}}}")
steps = "".join(f"{percent(time)}{{transform:translateY({-LINE * up}px)}}" for time, up in scrolls)
css.append(f"@keyframes up{{0%{{transform:none}}{steps}}}")
css.append(f".up{{animation-name:up;transform:translateY({-LINE * screen.top}px)}}")
css.append(f"g,text{{animation-duration:{seconds:.1f}s}}")
css.append("@media (prefers-reduced-motion:reduce){g,text{animation:none!important}}")

width, height = round(screen.columns * CELL + 2 * PAD), screen.rows * LINE + 2 * PAD
commands = set()
for _, _, place, text in versions:
    # A command goes on in the next row if it fills its own.
    if text.startswith("$ ") or (place - 1 in commands and len(screen.lines[place - 1]) == screen.columns):
        commands.add(place)
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n')
    file.write(f"<title>{escape(header['title'])}</title>\n<style>\n" + "\n".join(css) + "\n</style>\n")
    file.write(f'<rect width="{width}" height="{height}" rx="8" fill="#16191f"/>\n')
    file.write(f'<svg x="{PAD}" y="{PAD}" width="{width - 2 * PAD}" height="{screen.rows * LINE}"><g class="up">\n')
    for begin, end, place, text in versions:
        column = len(text) - len(text.lstrip())
        kind = " c" if place in commands else ""
        # Whatever the font, columns stay columns.
        file.write(f'<text class="k{spans.index((begin, end))}{kind}" x="{column * CELL:.1f}" y="{place * LINE + 14}" '
                   f'textLength="{(len(text) - column) * CELL:.1f}">{escape(text.strip())}</text>\n')
    file.write("</g></svg>\n</svg>\n")
print(f"{sys.argv[2]}: {len(versions)} texts in {len(screen.lines)} lines, {seconds:.0f} s")
