"""Insertion of an answer's code into the next cell."""

from __future__ import annotations

import ast
from typing import Any

from openruntime_jupyter.client.ai_response import CodeBlock, Reply
from openruntime_jupyter.notebook.ai.cards import Note

PYTHON = ("", "python", "py", "python3", "ipython", "pycon")
MAGICS = {"bash": "bash", "sh": "bash", "shell": "bash", "zsh": "bash", "html": "html", "javascript": "javascript", "js": "javascript"}
"""Cell magic for each language other than Python that a notebook cell can hold."""


def insert(shell: Any, reply: Reply) -> Note:
    """Put an answer's code into the next cell without running it, and return a note for the user.

    The front end inserts the code when the cell ends: JupyterLab, Notebook 7 and VS Code create a cell, and a terminal fills in its
    next prompt. Programs that run notebooks ignore it.
    """
    code = insertable(reply)
    if not code:
        return Note("The answer contains no code that a cell can run: nothing was inserted.")
    shell.set_next_input(code, replace=False)
    return Note(
        "The code was inserted into the next cell, not run. If no cell appeared, this front end does not support it. Get the code with",
        "print(_.code)",
    )


def insertable(reply: Reply) -> str:
    """Return the code for a cell: all Python blocks, else the first block whose language has a cell magic, else an empty string."""
    python = [block.source for block in reply.code_blocks if block.language in PYTHON and block.source.strip()]
    if python:
        return "\n\n".join(python)
    others = (_by_magic(block) for block in reply.code_blocks if block.language in MAGICS)
    return next(others, reply.text.strip() if not reply.code_blocks and _is_python(reply.text) else "")


def _by_magic(block: CodeBlock) -> str:
    return f"%%{MAGICS[block.language]}\n{block.source}"


def _is_python(text: str) -> bool:
    """Return whether a text without code blocks is code. Single words and sentences are not, even if they can be parsed."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    return any(not isinstance(each, (ast.Expr, ast.AnnAssign)) or isinstance(getattr(each, "value", None), ast.Call) for each in body)
