"""Building blocks of views: HTML that follows JupyterLab's theme, and the equivalent plain text.

Colours come from Jupyter's CSS variables, with fallbacks for VS Code and exported pages. The content is readable without any style, as
on GitHub. All text is escaped in `Html.of`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape
from typing import Any

Bundle = dict[str, Any]
"""MIME bundle: a view in several formats, from which the front end chooses."""

STYLE = """<style>
.ort{font:var(--jp-content-font-size1,14px)/1.5 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,currentColor);\
font-variant-numeric:tabular-nums;max-width:72em;margin:4px 6px}
.ort.ort.ort .m{color:var(--jp-ui-font-color2,currentColor)}
.ort.ort.ort code{font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:var(--jp-code-font-size,13px);\
background:none;padding:0;border:0;white-space:nowrap}
.ort-c{border:1px solid var(--jp-border-color2,rgba(128,128,128,.4));border-radius:4px;padding:8px 12px}
.ort-h{display:flex;flex-wrap:wrap;gap:0 12px;align-items:baseline}
.ort-h .r{margin-left:auto;flex-shrink:0}
.ort-l{flex-wrap:nowrap;white-space:nowrap}.ort-l>.s{overflow:hidden;text-overflow:ellipsis;min-width:0}
@media (max-width:640px){.ort-l{flex-wrap:wrap;white-space:normal}}
.ort-c>.ort-h{flex-wrap:nowrap}
.ort-x{border-left:3px solid var(--jp-error-color1,#d32f2f)}
.ort-x>*{margin:2px 0}
.ort.ort.ort .ort-e{overflow-wrap:anywhere;white-space:pre-line}
.ort.ort.ort summary{cursor:pointer;color:var(--jp-ui-font-color2,currentColor)}
.ort.ort.ort pre{font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:var(--jp-code-font-size,13px);\
line-height:1.4;margin:4px 0;padding:6px 8px;max-height:24em;overflow:auto;background:var(--jp-layout-color2,rgba(128,128,128,.12));\
color:inherit;white-space:pre}
.ort-b{height:3px;border-radius:2px;margin-top:6px;background:var(--jp-border-color2,rgba(128,128,128,.3));overflow:hidden}
.ort-b div{height:100%;background:var(--jp-brand-color1,#1976d2)}
.ort .ok{color:var(--jp-success-color1,#2e7d32)}.ort .no{color:var(--jp-error-color1,#d32f2f)}
.ort .go{color:var(--jp-brand-color1,#1976d2)}.ort .wa{color:var(--jp-warn-color1,#ef6c00)}
.ort-b .ok{background:var(--jp-success-color1,#2e7d32)}.ort-b .no{background:var(--jp-error-color1,#d32f2f)}
.ort-t{overflow-x:auto}
.ort.ort.ort table{border-collapse:collapse;margin:4px 0;font-size:inherit;border:0;table-layout:auto}
.ort.ort.ort tr{background:none}
.ort.ort.ort th,.ort.ort.ort td{text-align:left;padding:3px 14px 3px 0;border:0;background:none;\
vertical-align:baseline;max-width:none;color:inherit;line-height:inherit}
.ort.ort.ort :is(th,.n){white-space:nowrap}
.ort.ort.ort td.w{overflow-wrap:anywhere;min-width:7em}.ort.ort.ort td.w code{white-space:normal}
.ort.ort.ort th{font-weight:normal;color:var(--jp-ui-font-color2,currentColor)}
.ort.ort.ort thead th{border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.4))}
.ort.ort.ort .n{text-align:right}
.ort.ort.ort caption{caption-side:top;text-align:left;font-weight:600;color:inherit;padding:0 0 2px}
.ort-k{container-type:inline-size}
@container (max-width:560px){.ort.ort.ort .ort-k :is(table,tbody,caption){display:block}
.ort.ort.ort .ort-k thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.ort.ort.ort .ort-k tbody tr{display:flex;flex-wrap:wrap;gap:0 14px;padding:4px 0;\
border-top:1px solid var(--jp-border-color2,rgba(128,128,128,.4))}
.ort.ort.ort .ort-k td{padding:0;min-width:0;text-align:left;overflow-wrap:anywhere}
.ort.ort.ort .ort-k td code{white-space:normal}
.ort.ort.ort .ort-k td[data-l]::before{content:attr(data-l) " ";color:var(--jp-ui-font-color2,currentColor)}}
</style>"""

MANY_COLUMNS = 3
"""Minimum number of columns for which a narrow page shows table rows as cards."""


class Html(str):
    """Escaped HTML. `Html.of` escapes all other values."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> Html:
        """Return `value` as HTML, escaped unless it already is HTML."""
        return value if isinstance(value, Html) else cls(escape(str(value)))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """Return an element. `class_` becomes `class`, other underscores become hyphens, and attributes that are None are omitted."""
    attrs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    return Html(f"<{name}{attrs}>{''.join(Html.of(child) for child in children)}</{name}>")


CODE = re.compile(r'("[^"]*"|`[^`]*`)')
"""Code between backticks. Quoted text is matched too, so that backticks inside it are ignored."""


def prose(text: str) -> Html:
    """Return a text as HTML, with text between backticks in code style."""
    return Html("".join(tag("code", piece[1:-1]) if piece.startswith("`") else Html.of(piece) for piece in CODE.split(text)))


def joined(parts: Sequence[Any]) -> Html:
    """Return the non-empty parts, joined by separators that are readable without style."""
    return Html(" · ".join(Html.of(part) for part in parts if part))


def block(label: str, *children: Any, kind: str = "") -> Html:
    """Return a complete view: the style, and the content with a label for screen readers."""
    return Html(STYLE + tag("div", *children, class_=f"ort {kind}".rstrip(), role="group", aria_label=label))


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    numeric: Sequence[int] = (),
    wide: Sequence[int] = (),
    plain: Sequence[int] = (),
) -> Html:
    """Return a table with a caption. The columns at the indices `numeric` are right-aligned, those at `wide` may wrap within words.

    On narrow pages, rows of tables with many columns become cards with labelled values. The columns at `plain` have no label.
    """
    cards = len(columns) >= MANY_COLUMNS

    def role(name: str) -> str | None:
        return name if cards else None  # CSS display changes remove table semantics for screen readers, so set roles

    def kind(index: int) -> str | None:
        return "n" if index in numeric else "w" if index in wide else None

    def cell(index: int, value: Any) -> Html:
        label = columns[index] if cards and value != "" and index not in plain else None
        return tag("td", value, class_=kind(index), role=role("cell"), data_l=label)

    heads = (tag("th", column, scope="col", class_=kind(index), role=role("columnheader")) for index, column in enumerate(columns))
    head = tag("tr", *heads, role=role("row"))
    body = [tag("tr", *(cell(index, value) for index, value in enumerate(row)), role=role("row")) for row in rows]
    parts = (tag("caption", caption), tag("thead", head, role=role("rowgroup")), tag("tbody", *body, role=role("rowgroup")))
    return tag("div", tag("table", *parts, role=role("table")), class_="ort-t ort-k" if cards else "ort-t", tabindex="0")


def places(columns: Sequence[str], names: Collection[str]) -> list[int]:
    """Return the indices of the `columns` that are in `names`."""
    return [index for index, column in enumerate(columns) if column in names]


def pairs(caption: str, rows: Sequence[tuple[str, Any]]) -> Html:
    """Return a table of names and values."""
    body = [tag("tr", tag("th", name, scope="row"), tag("td", value, class_="w")) for name, value in rows]
    return tag("div", tag("table", tag("caption", caption) if caption else "", tag("tbody", *body)), class_="ort-t")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as plain text."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def text_pairs(rows: Sequence[tuple[str, Any]]) -> str:
    """Return names and values as plain text, one pair per line."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


class View:
    """Displayable value with an HTML and a plain-text form."""

    def html(self) -> str:
        """Return the view as HTML."""
        raise NotImplementedError

    def text(self) -> str:
        """Return the view as plain text."""
        raise NotImplementedError

    def bundle(self) -> Bundle:
        """Return both forms as a MIME bundle."""
        return {"text/html": str(self.html()), "text/plain": self.text()}

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        return self.bundle()
