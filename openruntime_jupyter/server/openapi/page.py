"""HTML page of the OpenAPI document, without external files, fonts or scripts."""

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
"""Prefix of the names of parameter schemas of operations."""


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = f"style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy of the page, with hashes of its style and script."""

BOUNDS = (
    ("minimum", "maximum", ""),
    ("exclusiveMinimum", "exclusiveMaximum", " (exclusive)"),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)
"""Keywords of the lower and upper bound, and the unit."""


def page(document: Schema, base: str) -> str:
    """Return the page for `document`, with examples for the server at the URL `base`."""
    info, schemas = document["info"], document["components"]["schemas"]
    types = {name: schema for name, schema in schemas.items() if not name.startswith(OPERATION)}
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
<span id="notice" role="status" aria-live="polite"></span></p>
{sections}
{_types("Operations", "operations", "`parameters` of a task, by `operation`.", operations, set(operations))}
{_types("Types", "types", "Types of bodies and responses.", types, _sent(document))}
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


def _method(verb: str, operation: Schema) -> str:
    return "WS" if "x-websocket" in operation else verb.upper()


def _contents(document: Schema) -> str:
    parts = []
    for tag in document["tags"]:
        entries = "".join(
            f'<li><a href="#{operation["operationId"]}">{_badge(verb, operation)}<code>{escape(path)}</code></a></li>'
            for verb, path, operation in _verbs(document, tag["name"])
        )
        parts.append(f"<h2>{escape(tag['name'])}</h2><ul>{entries}</ul>")
    return "".join(parts) + '<h2>More</h2><ul><li><a href="#operations">Operations</a></li><li><a href="#types">Types</a></li></ul>'


def _badge(verb: str, operation: Schema) -> str:
    method = _method(verb, operation)
    return f'<span class="verb {method.lower()}">{method}</span>'


def _logins(document: Schema) -> str:
    schemes = document["components"]["securitySchemes"]
    entries = "".join(f"<li>{_words(scheme['description'])}</li>" for scheme in schemes.values())
    free = any({} in operation["security"] for verbs in document["paths"].values() for operation in verbs.values())
    more = "<p>Local programs need to authenticate only to run their own code.</p>" if free else ""
    return f'<details class="plain" id="login"><summary>Authentication</summary><ul>{entries}</ul>{more}</details>'


def _tag(document: Schema, tag: Schema, base: str) -> str:
    routes = "".join(_route(document, verb, path, operation, base) for verb, path, operation in _verbs(document, tag["name"]))
    return f"<section><h2>{escape(tag['name'])}</h2>{_text(tag['description'])}{routes}</section>"


def _route(document: Schema, verb: str, path: str, operation: Schema, base: str) -> str:
    # The first paragraph is the summary, which is already in the header.
    parts = [_text(operation["description"].partition("\n\n")[2])]
    if operation["parameters"]:
        fields = "".join(_parameter(parameter) for parameter in operation["parameters"])
        parts.append(f"<h4>Parameters</h4><dl>{fields}</dl>")
    if "requestBody" in operation:
        parts.append("<h4>Body</h4>" + "".join(_content(kind, content) for kind, content in operation["requestBody"]["content"].items()))
    if "x-websocket" in operation:
        parts.append(_messages(operation["x-websocket"]))
    else:
        parts.append(_block("curl", _curl(verb, path, operation, base, not any(way == {} for way in operation["security"]))))
    parts.append("<h4>Responses</h4><dl>" + "".join(_response(document, *entry) for entry in operation["responses"].items()) + "</dl>")
    return (
        f'<details class="route" id="{operation["operationId"]}"><summary><h3>{_badge(verb, operation)}<code>{escape(path)}</code></h3>'
        f'<span class="summary">{_words(operation["summary"])}</span></summary><div class="inside">{"".join(parts)}</div></details>'
    )


def _parameter(parameter: Schema) -> str:
    required = ' <em class="mark">required</em>' if parameter.get("required") else ""
    text = _words(parameter.get("description", ""))
    where = {"path": "in the path", "query": "in the query", "header": "a header"}[parameter["in"]]
    return (
        f'<dt><code>{escape(parameter["name"])}</code>{required}<span class="type">{_type(parameter["schema"])}, {where}</span></dt>'
        f"<dd>{text}{_bounds(parameter['schema'])}</dd>"
    )


def _content(kind: str, content: Schema) -> str:
    parts = f"<p>{_type(content['schema'])} as <code>{escape(kind)}</code></p>"
    return parts + "".join(_block(name, _json(example["value"])) for name, example in content.get("examples", {}).items())


def _response(document: Schema, status: str, response: Schema) -> str:
    if "$ref" in response:
        response = document["components"]["responses"][status]
    types = [
        f"{_type(content['schema'])} as <code>{escape(kind)}</code>"
        for kind, content in response.get("content", {}).items()
        if "envelope" not in kind
    ]
    good = int(status) < 400
    heads = "".join(
        f"<li>Header <code>{escape(name)}</code>: {_words(header['description'])}</li>"
        for name, header in response.get("headers", {}).items()
    )
    example = _example(document, response) if good else ""
    return (
        f'<dt class="{"good" if good else "bad"}"><code>{status}</code><span class="type">{" or ".join(types)}</span></dt>'
        f"<dd>{_words(response['description'])}{f'<ul>{heads}</ul>' if heads else ''}{example}</dd>"
    )


def _example(document: Schema, response: Schema) -> str:
    schema = response.get("content", {}).get(JSON, {}).get("schema", {})
    if "$ref" not in schema:
        return ""
    examples = document["components"]["schemas"][_name(schema)].get("examples")
    return _block("Example", _json(examples[0]), folded=True) if examples else ""


def _messages(messages: Schema) -> str:
    entries = "".join(f"<dt><code>{escape(kind)}</code></dt><dd>{_words(text)}</dd>" for kind, text in messages["server"].items())
    return f"<h4>Messages from the server, by <code>type</code></h4><dl>{entries}</dl>"


def _sent(document: Schema) -> set[str]:
    """Return the names of types in request bodies. Only these show which fields are required."""
    schemas = document["components"]["schemas"]
    bodies = [operation.get("requestBody") for verbs in document["paths"].values() for operation in verbs.values()]
    found: set[str] = set()
    left = [json.dumps(bodies)]
    while left:
        new = set(re.findall(rf'"\$ref": "{SCHEMAS}(\w+)"', left.pop())) - found
        found |= new
        left += [json.dumps(schemas[name]) for name in new]
    return found


def _types(title: str, anchor: str, text: str, schemas: dict[str, Schema], sent: set[str]) -> str:
    parts = "".join(_type_details(name, schema, name in sent) for name, schema in schemas.items())
    return f'<section id="{anchor}"><h2>{title}</h2>{_text(text)}{parts}</section>'


def _type_details(name: str, schema: Schema, sent: bool) -> str:
    summary = f"<summary><h3><code>{escape(schema.get('title', name))}</code></h3>"
    summary += f'<span class="summary">{_words(schema.get("description", "").partition(chr(10))[0])}</span></summary>'
    required = schema.get("required", ())
    marks = {True: "required", False: ""} if sent else {True: "", False: "may be absent"}
    fields = "".join(_field(field, field_schema, marks[field in required]) for field, field_schema in schema.get("properties", {}).items())
    inside = f"<dl>{fields}</dl>" if fields else f"<p>{_type(schema)}</p>"
    return f'<details class="route" id="type-{escape(name)}">{summary}<div class="inside">{inside}</div></details>'


def _field(name: str, schema: Schema, mark: str) -> str:
    marked = f' <em class="mark">{mark}</em>' if mark else ""
    return (
        f'<dt><code>{escape(name)}</code>{marked}<span class="type">{_type(schema)}</span></dt>'
        f"<dd>{_words(schema.get('description', ''))}{_bounds(schema)}</dd>"
    )


def _name(schema: Schema) -> str:
    return str(schema["$ref"]).removeprefix(SCHEMAS)


def _type(schema: Schema) -> str:
    """Return a short description of a schema as HTML."""
    if "$ref" in schema:
        name = _name(schema)
        # Types of an operation link to the operation.
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
    bounds = [_range(bounded.get(low), bounded.get(high)) + what for low, high, what in BOUNDS if low in bounded or high in bounded]
    if schema.get("default") is not None:
        bounds.append(f"default {json.dumps(schema['default'])}")
    return f'<span class="bounds">{escape("; ".join(bounds))}</span>' if bounds else ""


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low:,}"
    return f"at most {high:,}" if low is None else f"{low:,} to {high:,}"


def _curl(verb: str, path: str, operation: Schema, base: str, token: bool) -> str:
    url = base + re.sub(r"\{(\w+)\}", lambda name: "$" + name[1].upper(), path)
    lines = [f'curl "{url}"' if verb == "get" else f'curl -X {verb.upper()} "{url}"']
    if token:
        lines.append('-H "Authorization: token $TOKEN"')
    content = operation.get("requestBody", {}).get("content", {})
    if JSON in content:
        examples: list[Schema] = list(content[JSON].get("examples", {}).values())
        example = examples[0]["value"] if examples else {}
        lines += [f'-H "Content-Type: {JSON}"', "-d '" + json.dumps(example).replace("'", "'\\''") + "'"]
    elif content:
        lines += [f'-H "Content-Type: {next(iter(content))}"', "--data-binary @FILE"]
    return " \\\n  ".join(lines)


def _json(value: Any) -> str:
    """Return indented JSON with lists of plain values on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n([^\[\]{}]*?)\n\s*\]", lambda inside: "[" + re.sub(r"\n\s*", " ", inside[1]).strip() + "]", text)


def _block(title: str, text: str, folded: bool = False) -> str:
    button = f'<button type="button" class="copy">Copy<span class="unseen"> {escape(title)}</span></button>'
    body = f'{button}<pre tabindex="0">{escape(text)}</pre>'
    if folded:
        return f'<details class="plain"><summary>{escape(title)}</summary><div class="block">{body}</div></details>'
    return f'<div class="block"><p class="title">{escape(title)}</p>{body}</div>'


def _words(text: str) -> str:
    """Return one line of text as HTML, with `code` formatted."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _text(text: str) -> str:
    return "".join(f"<p>{_words(' '.join(part.split()))}</p>" for part in text.split("\n\n"))
