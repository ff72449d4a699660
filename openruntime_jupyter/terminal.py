"""Text as a terminal shows it."""

from __future__ import annotations

import re

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n\b])|([^\x1b\r\n\b]+)|\x1b")


def terminal_text(text: str, colours: bool = True) -> str:
    r"""Return what a terminal shows after `text`.

    `\r` returns to the start of the line, `\b` erases a character, and the escape sequences of progress bars move up or erase the rest of a
    line. Colours are kept, or removed with `colours` False. Other escape sequences are removed.
    """
    if not any(sign in text for sign in "\r\b\x1b"):
        return text
    screen = _Screen(colours)
    for match in _PARTS.finditer(text):
        argument, command, control, written = match.groups()
        if written:
            screen.write(written)
        elif control:
            screen.control(control)
        elif command:
            screen.escape(argument, command)
    return screen.text()


class _Screen:
    """Lines of characters, each with the colour sequences next to it."""

    def __init__(self, colours: bool) -> None:
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self._colours = colours
        self._pending = ""  # colour of the next character at the start of a line

    def write(self, text: str) -> None:
        """Write text without control characters over what is at the cursor."""
        line, column, cells = self._lines[self._row], self._column, list(text)
        cells[0], self._pending = self._pending + cells[0], ""
        line.extend(" " * (column - len(line)))
        line[column : column + len(cells)] = cells
        self._column += len(cells)

    def control(self, sign: str) -> None:
        """Apply a control character."""
        if sign == "\n":
            self._row, self._column = self._row + 1, 0
            if self._row == len(self._lines):
                self._lines.append([])
        elif sign == "\r":
            self._column = 0
        else:
            self._column = max(0, self._column - 1)
            del self._lines[self._row][self._column : self._column + 1]

    def escape(self, argument: str, command: str) -> None:
        """Apply an escape sequence."""
        line, column = self._lines[self._row], self._column
        if command == "A":
            self._row = max(0, self._row - (int(argument) if argument.isdecimal() else 1))
        elif command == "K":
            before = line[:column] if argument in ("", "0") else [" "] * column
            line[:] = [*before, *(line[column:] if argument == "1" else [])]
        elif command == "m" and self._colours:
            if 0 < column <= len(line):
                line[column - 1] += f"\x1b[{argument}m"
            else:
                self._pending += f"\x1b[{argument}m"

    def text(self) -> str:
        """Return all lines."""
        return "\n".join(map("".join, self._lines)) + self._pending
