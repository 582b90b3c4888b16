"""Writes templates/cases.json: what Jinja makes of conversations with tools by the templates beside it.

The templates do what published ones do, in words of their own: tools_to_the_system as those of Qwen2.5,
tools_to_the_user as those of Llama 3, arguments_as_text as those of DeepSeek, arguments_by_name as those of
GLM and newer Qwen. Jinja is set up as transformers does it (utils/chat_template_utils.py), on the day that
`cllm` takes for examples.

Needs jinja2 3.1 alone: python3 tests/golden/make_templates.py
"""

import copy
import datetime
import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent / "templates"
DAY = datetime.datetime(2024, 7, 26)
NAMES = ["tools_to_the_system", "tools_to_the_user", "arguments_as_text", "arguments_by_name"]

PARAMETERS = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "default": None, "minimum": 0.5},
    },
    "required": ["place"],
}
FUNCTION = {"name": "weather", "description": "The weather in °C.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"name": "weather", "arguments": {"place": "Rome <é>", "days": [2, {"n": True}], "a": {}}}
TALK = [
    {"role": "system", "content": " Be good."},
    {"role": "user", "content": "Is it <warm>?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"t": 21.5}'},
    {"role": "assistant", "content": "It is.", "reasoning_content": "21 > 20"},
    {"role": "user", "content": "Why?"},
]


def refuse(message):
    raise TemplateError(message)


def render(source, **variables):
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    jinja.filters["tojson"] = tojson
    jinja.globals["raise_exception"] = refuse
    jinja.globals["strftime_now"] = DAY.strftime
    return jinja.from_string(source).render(documents=None, bos_token="<s>", eos_token="</s>", **variables)


def main():
    as_text = copy.deepcopy(TALK)
    as_text[2]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["arguments"], separators=(",", ":"))
    cases = []
    for name in NAMES:
        source = (HERE / f"{name}.jinja").read_text()
        for tools in [None, TOOLS]:
            for length, to_reply in [(2, True), (3, False), (4, True), (6, True)]:
                # Templates that want objects are given objects here; cllm makes those of the texts.
                given = as_text if name == "arguments_as_text" else TALK
                expected = render(source, messages=given[:length], tools=tools, add_generation_prompt=to_reply)
                cases.append({"template": name, "tools": tools, "messages": length, "to_reply": to_reply})
                cases[-1]["expected"] = expected
    whole = {"objects": TALK, "texts": as_text, "cases": cases}
    (HERE / "cases.json").write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
