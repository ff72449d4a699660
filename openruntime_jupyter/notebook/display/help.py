"""Help of the magics, as tables of commands and options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from openruntime_jupyter.notebook.display.html import Column, Styled, View, code, line, prose, table


class Help(View):
    """Tables of commands and options, with a note below. Both have rows of a usage and its description."""

    label, kind = "OpenRuntime help", "ort-c"

    def __init__(self, title: str, commands: Sequence[tuple[str, str]], options: Sequence[tuple[str, str]], note: str) -> None:
        self.commands = commands
        self._title, self._options, self._note = title, options, note

    def content(self) -> Iterable[Styled]:
        """Return the tables and the note."""
        yield _usages(self._title, "command", self.commands)
        yield _usages("Options", "option", self._options)
        yield line(self._note, class_="m")

    def text(self) -> str:
        """Return the view as plain text, with blank lines between the tables."""
        return "\n\n".join(self.content())


def _usages(caption: str, name: str, rows: Sequence[tuple[str, str]]) -> Styled:
    return table(caption, [Column(name, lambda row: code(row[0])), Column("description", lambda row: prose(row[1]), "wrap")], rows)
