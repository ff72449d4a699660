"""An answer's code in the next cell."""

from __future__ import annotations

import ast
from typing import Any

from openruntime_jupyter.client.ai_response import CodeBlock, Reply
from openruntime_jupyter.notebook.ai.cards import Note

PYTHON = ("", "python", "py", "python3", "ipython", "pycon")
MAGICS = {"bash": "bash", "sh": "bash", "shell": "bash", "zsh": "bash", "html": "html", "javascript": "javascript", "js": "javascript"}
"""Languages that a cell of a Python notebook can hold, and the cell magic for each."""


def insert(shell: Any, reply: Reply) -> Note:
    """Put the code of an answer into the next cell, where it runs only if somebody runs it; returns what is to be said about it.

    A front end takes it with the end of the cell: JupyterLab, Notebook 7 and VS Code make a cell of it, a terminal fills in its
    next prompt, and programs that run notebooks leave it.
    """
    code = insertable(reply)
    if not code:
        return Note("The answer has no code for a cell: nothing was inserted.")
    shell.set_next_input(code, replace=False)
    return Note(
        "The code is in the next cell, not run. If none appeared below, this front end does not take it; you have it by", "print(_.code)"
    )


def insertable(reply: Reply) -> str:
    """The code that a cell can hold: what is Python, else the first block of a language that has a cell magic; empty for none."""
    python = [block.source for block in reply.code_blocks if block.language in PYTHON and block.source.strip()]
    if python:
        return "\n\n".join(python)
    others = (_by_magic(block) for block in reply.code_blocks if block.language in MAGICS)
    return next(others, reply.text.strip() if not reply.code_blocks and _is_python(reply.text) else "")


def _by_magic(block: CodeBlock) -> str:
    return f"%%{MAGICS[block.language]}\n{block.source}"


def _is_python(text: str) -> bool:
    """Whether a text without any block is code all the same: a word or a sentence is none, though the one or other could be parsed."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    return any(not isinstance(each, (ast.Expr, ast.AnnAssign)) or isinstance(getattr(each, "value", None), ast.Call) for each in body)
