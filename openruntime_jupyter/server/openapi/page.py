"""The OpenAPI document as one page for people: no file, font or script comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from openruntime_jupyter.server.openapi.decorator import JSON
from openruntime_jupyter.server.openapi.document import SCHEMAS, VERBS

Schema = dict[str, Any]

STYLE = Path(__file__).with_name("docs.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("docs.js").read_text(encoding="utf-8")

OPERATION = "parameters."
"""How the schemas of operations' parameters begin."""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = f"style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'; base-uri 'none'; form-action 'none'"
"""What the page needs of a Content-Security-Policy."""

BOUNDS = (
    ("minimum", "maximum", ""),
    ("exclusiveMinimum", "exclusiveMaximum", " (exclusive)"),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)
"""From where, to where, of what."""


def page(document: Schema, base: str) -> str:
    """The page for `document`, whose examples ask the server at the URL `base`."""
    info, schemas = document["info"], document["components"]["schemas"]
    kinds = {name: schema for name, schema in schemas.items() if not name.startswith(OPERATION)}
    operations = {name: schema for name, schema in schemas.items() if name.startswith(OPERATION)}
    sections = "".join(_tag(document, tag, base) for tag in document["tags"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(info["title"])} API {escape(info["version"])}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{escape(info["title"])} API <small>{escape(info["version"])}</small></h1>
<p class="where"><code>{escape(base)}</code> <a href="{escape(base)}/openapi.json">openapi.json</a></p>
</header>
<nav aria-label="Contents">
<label for="filter">Filter</label>
<input id="filter" type="search" placeholder="path or word" autocomplete="off">
<details id="contents" open><summary>Contents</summary>{_contents(document)}</details>
</nav>
<main id="content" tabindex="-1">
<section>{_text(info["description"])}{_logins(document)}</section>
<p class="tools"><button type="button" id="open-all">Open all</button> <button type="button" id="close-all">Close all</button>
<span id="said" role="status" aria-live="polite"></span></p>
{sections}
{_types("Operations", "operations", "What `parameters` of a task may be, for each `operation`.", operations, set(operations))}
{_types("Types", "types", "What bodies and answers are made of.", kinds, _sent(document))}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _verbs(document: Schema, tag: str) -> Iterator[tuple[str, str, Schema]]:
    for path, verbs in document["paths"].items():
        for verb in VERBS:
            if verb in verbs and verb != "head" and tag in verbs[verb]["tags"]:
                yield verb, path, verbs[verb]


def _shown(verb: str, said: Schema) -> str:
    return "WS" if "x-websocket" in said else verb.upper()


def _contents(document: Schema) -> str:
    made = []
    for tag in document["tags"]:
        entries = "".join(
            f'<li><a href="#{said["operationId"]}">{_badge(verb, said)}<code>{escape(path)}</code></a></li>'
            for verb, path, said in _verbs(document, tag["name"])
        )
        made.append(f"<h2>{escape(tag['name'])}</h2><ul>{entries}</ul>")
    return "".join(made) + '<h2>More</h2><ul><li><a href="#operations">Operations</a></li><li><a href="#types">Types</a></li></ul>'


def _badge(verb: str, said: Schema) -> str:
    shown = _shown(verb, said)
    return f'<span class="verb {shown.lower()}">{shown}</span>'


def _logins(document: Schema) -> str:
    schemes = document["components"]["securitySchemes"]
    entries = "".join(f"<li>{_words(scheme['description'])}</li>" for scheme in schemes.values())
    free = any({} in said["security"] for verbs in document["paths"].values() for said in verbs.values())
    more = "<p>Programs of this machine need none of it, but to run code of their own.</p>" if free else ""
    return f'<details class="plain" id="login"><summary>Who may ask</summary><ul>{entries}</ul>{more}</details>'


def _tag(document: Schema, tag: Schema, base: str) -> str:
    routes = "".join(_route(document, verb, path, said, base) for verb, path, said in _verbs(document, tag["name"]))
    return f"<section><h2>{escape(tag['name'])}</h2>{_text(tag['description'])}{routes}</section>"


def _route(document: Schema, verb: str, path: str, said: Schema, base: str) -> str:
    # The first paragraph is the summary, which stands above.
    parts = [_text(said["description"].partition("\n\n")[2])]
    if said["parameters"]:
        fields = "".join(_parameter(given) for given in said["parameters"])
        parts.append(f"<h4>Parameters</h4><dl>{fields}</dl>")
    if "requestBody" in said:
        parts.append("<h4>Body</h4>" + "".join(_content(kind, content) for kind, content in said["requestBody"]["content"].items()))
    if "x-websocket" in said:
        parts.append(_messages(said["x-websocket"]))
    else:
        parts.append(_block("Ask with curl", _curl(verb, path, said, base, not any(way == {} for way in said["security"]))))
    parts.append("<h4>Answers</h4><dl>" + "".join(_answer(document, *entry) for entry in said["responses"].items()) + "</dl>")
    return (
        f'<details class="route" id="{said["operationId"]}"><summary><h3>{_badge(verb, said)}<code>{escape(path)}</code></h3>'
        f'<span class="summary">{_words(said["summary"])}</span></summary><div class="inside">{"".join(parts)}</div></details>'
    )


def _parameter(given: Schema) -> str:
    needed = ' <em class="mark">required</em>' if given.get("required") else ""
    about = _words(given.get("description", ""))
    where = {"path": "in the path", "query": "in the query", "header": "a header"}[given["in"]]
    return (
        f'<dt><code>{escape(given["name"])}</code>{needed}<span class="type">{_type(given["schema"])}, {where}</span></dt>'
        f"<dd>{about}{_bounds(given['schema'])}</dd>"
    )


def _content(kind: str, content: Schema) -> str:
    made = f"<p>{_type(content['schema'])} as <code>{escape(kind)}</code></p>"
    return made + "".join(_block(name, _json(example["value"])) for name, example in content.get("examples", {}).items())


def _answer(document: Schema, status: str, answer: Schema) -> str:
    if "$ref" in answer:
        answer = document["components"]["responses"][status]
    kinds = [
        f"{_type(content['schema'])} as <code>{escape(kind)}</code>"
        for kind, content in answer.get("content", {}).items()
        if "envelope" not in kind
    ]
    good = int(status) < 400
    heads = "".join(
        f"<li>Header <code>{escape(name)}</code>: {_words(header['description'])}</li>"
        for name, header in answer.get("headers", {}).items()
    )
    example = _example(document, answer) if good else ""
    return (
        f'<dt class="{"good" if good else "bad"}"><code>{status}</code><span class="type">{" or ".join(kinds)}</span></dt>'
        f"<dd>{_words(answer['description'])}{f'<ul>{heads}</ul>' if heads else ''}{example}</dd>"
    )


def _example(document: Schema, answer: Schema) -> str:
    schema = answer.get("content", {}).get(JSON, {}).get("schema", {})
    if "$ref" not in schema:
        return ""
    examples = document["components"]["schemas"][_name(schema)].get("examples")
    return _block("Example", _json(examples[0]), folded=True) if examples else ""


def _messages(messages: Schema) -> str:
    told = "".join(f"<dt><code>{escape(kind)}</code></dt><dd>{_words(about)}</dd>" for kind, about in messages["server"].items())
    return f"<h4>What the server sends, by <code>type</code></h4><dl>{told}</dl>"


def _sent(document: Schema) -> set[str]:
    """The names of the types that clients send; what is required of others is no concern of theirs."""
    schemas = document["components"]["schemas"]
    bodies = [said.get("requestBody") for verbs in document["paths"].values() for said in verbs.values()]
    found: set[str] = set()
    left = [json.dumps(bodies)]
    while left:
        new = set(re.findall(rf'"\$ref": "{SCHEMAS}(\w+)"', left.pop())) - found
        found |= new
        left += [json.dumps(schemas[name]) for name in new]
    return found


def _types(title: str, anchor: str, about: str, schemas: dict[str, Schema], sent: set[str]) -> str:
    made = "".join(_kind(name, schema, name in sent) for name, schema in schemas.items())
    return f'<section id="{anchor}"><h2>{title}</h2>{_text(about)}{made}</section>'


def _kind(name: str, schema: Schema, sent: bool) -> str:
    summary = f"<summary><h3><code>{escape(schema.get('title', name))}</code></h3>"
    summary += f'<span class="summary">{_words(schema.get("description", "").partition(chr(10))[0])}</span></summary>'
    required = schema.get("required", ())
    marks = {True: "required", False: ""} if sent else {True: "", False: "may be absent"}
    fields = "".join(_field(field, given, marks[field in required]) for field, given in schema.get("properties", {}).items())
    inside = f"<dl>{fields}</dl>" if fields else f"<p>{_type(schema)}</p>"
    return f'<details class="route" id="type-{escape(name)}">{summary}<div class="inside">{inside}</div></details>'


def _field(name: str, given: Schema, mark: str) -> str:
    marked = f' <em class="mark">{mark}</em>' if mark else ""
    return (
        f'<dt><code>{escape(name)}</code>{marked}<span class="type">{_type(given)}</span></dt>'
        f"<dd>{_words(given.get('description', ''))}{_bounds(given)}</dd>"
    )


def _name(schema: Schema) -> str:
    return str(schema["$ref"]).removeprefix(SCHEMAS)


def _type(schema: Schema) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = _name(schema)
        # What only an operation has is told with the operation.
        return f'<a href="#type-{escape(name.partition("/")[0])}">{escape(name.rpartition("/")[2])}</a>'
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema.get("anyOf") or schema["oneOf"]))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("format") in ("date-time", "binary"):
        return {"date-time": "time", "binary": "bytes"}[schema["format"]]
    return escape(str(kind))


def _bounds(schema: Schema) -> str:
    bounded = next((each for each in schema.get("anyOf", ()) if each.get("type") != "null"), schema)
    said = [_range(bounded.get(low), bounded.get(high)) + what for low, high, what in BOUNDS if low in bounded or high in bounded]
    if schema.get("default") is not None:
        said.append(f"default {json.dumps(schema['default'])}")
    return f'<span class="bounds">{escape("; ".join(said))}</span>' if said else ""


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low:,}"
    return f"at most {high:,}" if low is None else f"{low:,} to {high:,}"


def _curl(verb: str, path: str, said: Schema, base: str, token: bool) -> str:
    url = base + re.sub(r"\{(\w+)\}", lambda name: "$" + name[1].upper(), path)
    lines = [f'curl "{url}"' if verb == "get" else f'curl -X {verb.upper()} "{url}"']
    if token:
        lines.append('-H "Authorization: token $TOKEN"')
    content = said.get("requestBody", {}).get("content", {})
    if JSON in content:
        shown: list[Schema] = list(content[JSON].get("examples", {}).values())
        example = shown[0]["value"] if shown else {}
        lines += [f'-H "Content-Type: {JSON}"', "-d '" + json.dumps(example).replace("'", "'\\''") + "'"]
    elif content:
        lines += [f'-H "Content-Type: {next(iter(content))}"', "--data-binary @FILE"]
    return " \\\n  ".join(lines)


def _json(value: Any) -> str:
    """Indented, but for lists of plain values."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n([^\[\]{}]*?)\n\s*\]", lambda inside: "[" + re.sub(r"\n\s*", " ", inside[1]).strip() + "]", text)


def _block(title: str, text: str, folded: bool = False) -> str:
    button = f'<button type="button" class="copy">Copy<span class="unseen"> {escape(title)}</span></button>'
    body = f'{button}<pre tabindex="0">{escape(text)}</pre>'
    if folded:
        return f'<details class="plain"><summary>{escape(title)}</summary><div class="block">{body}</div></details>'
    return f'<div class="block"><p class="title">{escape(title)}</p>{body}</div>'


def _words(text: str) -> str:
    """One line of text, with `code`."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _text(text: str) -> str:
    return "".join(f"<p>{_words(' '.join(part.split()))}</p>" for part in text.split("\n\n"))
