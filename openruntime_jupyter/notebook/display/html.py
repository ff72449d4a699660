"""Building blocks of views. Each part of a view has a plain-text form and an HTML form that follows JupyterLab's theme.

Colours come from Jupyter's CSS variables, with fallbacks for VS Code and exported pages. The content is readable without any style, as
on GitHub. All text is escaped in `Html.of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from openruntime_jupyter.notebook.display.format import counted

if TYPE_CHECKING:
    from typing_extensions import Self

Record = TypeVar("Record")

Bundle = dict[str, Any]
"""MIME bundle: a view in several formats, from which the front end chooses."""

STYLE = """<style>
.ort{font:var(--jp-content-font-size1,14px)/1.5 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,currentColor);\
font-variant-numeric:tabular-nums;max-width:72em;margin:4px 6px}
.ort.ort.ort .m{color:var(--jp-ui-font-color2,currentColor)}
.ort.ort.ort code{font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:var(--jp-code-font-size,13px);\
background:none;padding:0;border:0;overflow-wrap:anywhere}
.ort-c{border:1px solid var(--jp-border-color2,rgba(128,128,128,.4));border-radius:4px;padding:8px 12px}
.ort-h{display:flex;flex-wrap:wrap;gap:0 12px;align-items:baseline}
.ort-h .r{margin-left:auto;flex-shrink:0}
.ort-l{flex-wrap:nowrap;white-space:nowrap}.ort-l>.s{white-space:normal;min-width:0}
.ort-l>.t{overflow:hidden;text-overflow:ellipsis;flex:1 0 6em;max-width:max-content}.ort-w{max-width:110em}
.ort.ort.ort code.i{display:inline-block;white-space:nowrap;max-width:15ch;\
overflow:hidden;text-overflow:ellipsis;vertical-align:bottom;user-select:all}
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
.ort-t{overflow-x:auto}.ort-c .ort-t{margin-top:8px}
.ort.ort.ort table{border-collapse:collapse;margin:4px 0;font-size:inherit;border:0;table-layout:auto}
.ort.ort.ort tr{background:none}
.ort.ort.ort th,.ort.ort.ort td{text-align:left;padding:3px 10px 3px 0;border:0;background:none;\
vertical-align:baseline;max-width:none;color:inherit;line-height:inherit}
.ort.ort.ort :is(th,.n){white-space:nowrap}
.ort.ort.ort td.w{overflow-wrap:anywhere;min-width:7em}.ort .u,.ort.ort.ort td:not(.w) code{white-space:nowrap}
.ort.ort.ort th{font-weight:normal;color:var(--jp-ui-font-color2,currentColor)}
.ort.ort.ort thead th{border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.4))}
.ort.ort.ort .n{text-align:right}
.ort.ort.ort caption{caption-side:top;text-align:left;font-weight:600;color:inherit;padding:0 0 2px}
.ort-k{container-type:inline-size}
@container (max-width:560px){.ort.ort.ort .ort-k :is(table,tbody,caption){display:block}
.ort.ort.ort .ort-k thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.ort.ort.ort .ort-k tbody tr{display:flex;flex-wrap:wrap;gap:2px 14px;padding:6px 0;\
border-top:1px solid var(--jp-border-color2,rgba(128,128,128,.4))}
.ort.ort.ort .ort-k td{padding:0;min-width:0;text-align:left;overflow-wrap:anywhere}
.ort.ort.ort .ort-k td code:not(.i){white-space:normal}
.ort.ort.ort .ort-k td[data-l]::before{content:attr(data-l) " ";color:var(--jp-ui-font-color2,currentColor)}}
</style>"""

LONGEST_WORD = 18
"""Maximum length of an unbroken word, in characters: that of the operations' names."""
WORD = re.compile(r"(\S+)")
HYPHENATED = re.compile(r"(\S*-\S*)")
"""Words within which all text may be wrapped, as in `--out`."""
MANY_COLUMNS = 2
"""Minimum number of columns for which a narrow page shows table rows as cards."""


class Html(str):
    """Escaped HTML. `Html.of` escapes all other values."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> Html:
        """Return `value` as HTML, escaped unless it is HTML or has an HTML form."""
        if isinstance(value, Styled):
            return value.html
        return value if isinstance(value, Html) else cls(escape(str(value)))


class Styled(str):
    """Plain text with an HTML form."""

    __slots__ = ("html",)
    html: Html

    def __new__(cls, text: str, html: Html) -> Self:
        """Return `text` with its HTML form."""
        made = super().__new__(cls, text)
        made.html = html
        return made


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """Return an element. `class_` becomes `class`, other underscores become hyphens, and attributes that are None are omitted."""
    attrs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    return Html(f"<{name}{attrs}>{''.join(Html.of(child) for child in children)}</{name}>")


def styled(name: str, *children: Any, **attributes: Any) -> Styled:
    """Return an element whose text is the text of its children."""
    return Styled("".join(map(str, children)), tag(name, *children, **attributes))


def line(*children: Any, class_: str | None = None) -> Styled:
    """Return a line of a view."""
    return styled("div", *children, class_=class_)


def code(text: str, class_: str | None = None) -> Styled:
    """Return a text in code style. In HTML it is not wrapped at its hyphens."""
    return Styled(text, tag("code", _unbroken(text, HYPHENATED), class_=class_))


def task_id(text: str, class_: str = "") -> Styled:
    """Return an id. In HTML it is shown short, and a click selects it whole."""
    return styled("code", text, class_=f"i {class_}".rstrip(), title=text)


def sign(text: str, colour: str, label: str | None = None) -> Styled:
    """Return a coloured sign. Screen readers read `label` or skip the sign."""
    hidden = "true" if label is None else None
    return styled("span", text, class_=colour, aria_hidden=hidden, aria_label=label, role="img" if label else None)


def warnings(problems: Iterable[str]) -> list[Styled]:
    """Return a line for each problem."""
    return [line("! ", prose(problem), class_="wa") for problem in problems]


CODE = re.compile(r'("[^"]*"|`[^`]*`)')
"""Code between backticks. Quoted text is matched too, so that backticks inside it are ignored."""


def prose(text: str) -> Styled:
    """Return a text. In HTML, text between backticks is in code style."""
    pieces = (code(piece[1:-1]).html if piece.startswith("`") else Html.of(piece) for piece in CODE.split(text))
    return Styled(text, Html("".join(pieces)))


def joined(parts: Iterable[Any]) -> Styled:
    """Return the non-empty parts, joined by separators that are readable without style."""
    shown = [part for part in parts if part]
    return Styled(" · ".join(map(str, shown)), Html(" · ".join(map(Html.of, shown))))


def collapsed(name: str, text: str) -> Html:
    """Return a text that is shown on a click on its name."""
    return tag("details", tag("summary", f"{name} ({counted(len(text.splitlines()), 'line')})"), tag("pre", text, tabindex="0"))


def block(label: str, *children: Any, kind: str = "") -> Html:
    """Return a complete view: the style, and the content with a label for screen readers."""
    return Html(STYLE + tag("div", *children, class_=f"ort {kind}".rstrip(), role="group", aria_label=label))


@dataclass(frozen=True)
class Column(Generic[Record]):
    """Column of a table: its heading and its value for a record."""

    name: str
    value: Callable[[Record], Any]
    kind: Literal["", "number", "wrap"] = ""
    """Numbers are right-aligned, and columns of kind `wrap` may be wrapped, also within long words."""
    labelled: bool = True
    """False if the value needs no label in a card."""


def table(caption: str, columns: Sequence[Column[Record]], records: Iterable[Record]) -> Styled:
    """Return a table with a caption. Columns without any value are omitted.

    On narrow pages, rows of tables with many columns become cards with labelled values.
    """
    values = [[column.value(record) for column in columns] for record in records]
    kept = [index for index in range(len(columns)) if any(row[index] != "" for row in values)]
    columns, rows = [columns[index] for index in kept], [[row[index] for index in kept] for row in values]
    text = text_table([column.name for column in columns], rows)
    return Styled(f"{caption}\n{text}" if caption else text, _html_table(caption, columns, rows))


def _html_table(caption: str, columns: Sequence[Column[Any]], rows: Sequence[Sequence[Any]]) -> Html:
    cards = len(columns) >= MANY_COLUMNS
    classes = {"number": "n", "wrap": "w"}

    def role(name: str) -> str | None:
        return name if cards else None  # CSS display changes remove table semantics for screen readers, so set roles

    def cell(column: Column[Any], value: Any) -> Html:
        label = column.name if cards and value != "" and column.labelled else None
        shown = _unbroken(value, WORD if column.kind == "wrap" else HYPHENATED)
        return tag("td", shown, class_=classes.get(column.kind), role=role("cell"), data_l=label)

    heads = (tag("th", column.name, scope="col", class_=classes.get(column.kind), role=role("columnheader")) for column in columns)
    head = tag("thead", tag("tr", *heads, role=role("row")), role=role("rowgroup"))
    body = [tag("tr", *map(cell, columns, row), role=role("row")) for row in rows]
    parts = (tag("caption", caption) if caption else "", head, tag("tbody", *body, role=role("rowgroup")))
    return tag("div", tag("table", *parts, role=role("table")), class_="ort-t ort-k" if cards else "ort-t", tabindex="0")


def _unbroken(value: Any, words: re.Pattern[str]) -> Any:
    """Return plain text as HTML that is not wrapped within its words, except for long ones."""
    if not isinstance(value, str) or isinstance(value, (Styled, Html)):
        return value
    parts = (tag("span", part, class_="u") if words.fullmatch(part) and len(part) <= LONGEST_WORD else part for part in words.split(value))
    return Html("".join(map(Html.of, parts)))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as plain text."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def pairs(rows: Sequence[tuple[str, Any]], caption: str = "") -> Styled:
    """Return a table of names and values."""
    width = max((len(name) for name, _ in rows), default=0)
    body = [tag("tr", tag("th", name, scope="row"), tag("td", value, class_="w")) for name, value in rows]
    html = tag("div", tag("table", tag("caption", caption) if caption else "", tag("tbody", *body)), class_="ort-t")
    return Styled("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows), html)


class View:
    """Displayable value with an HTML and a plain-text form."""

    label = "OpenRuntime"
    """Name for screen readers."""
    kind = ""
    """CSS class: `ort-c` for a card."""

    def content(self) -> Iterable[Styled]:
        """Return the parts, one below the other. Parts with an empty text are shown in HTML only."""
        raise NotImplementedError

    def html(self) -> str:
        """Return the view as HTML."""
        return block(self.label, *self.content(), kind=self.kind)

    def text(self) -> str:
        """Return the view as plain text."""
        return "\n".join(str(part) for part in self.content() if part)

    def bundle(self) -> Bundle:
        """Return both forms as a MIME bundle."""
        return {"text/html": str(self.html()), "text/plain": self.text()}

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        return self.bundle()


class RecordTable(View, list[Record]):
    """List of records that is displayed as a table."""

    caption = ""
    empty = ""
    """Text in place of an empty table."""
    columns: Sequence[Column[Record]] = ()

    def notes(self) -> Iterable[Styled]:
        """Return the lines below the table."""
        return ()

    def content(self) -> Iterable[Styled]:
        """Return the table and its notes."""
        shown = table(self.caption, self.columns, self) if self else line(prose(self.empty), class_="m")
        return [shown, *self.notes()]
