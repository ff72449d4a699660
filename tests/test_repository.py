"""Committed files: no paths of a machine, valid links, complete notebooks and make help."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MACHINE_PATHS = re.compile(
    r"/work/(main|venv|shared)\b|/tmp/team\b|(?<![\w./~])/(root|Users/\w+|home/(?!me\b|jovyan\b|secret\b)\w+)/|/opt/(wheels|pypi)"
)
REGISTRY_HOSTS = re.compile(r"(pypi|pythonhosted|npmjs|debian)\.(org|com)\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def committed() -> list[Path]:
    """Return all existing files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    return [path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file()]


def matching_lines(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in committed():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def documents() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.md")),
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "sdks").glob("*/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a Markdown file's headings by GitHub's rule."""
    headings = HEADING.findall(FENCED.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_committed_file_contains_machine_paths() -> None:
    assert not matching_lines(MACHINE_PATHS)


def test_no_committed_file_names_a_package_registry() -> None:
    assert not matching_lines(REGISTRY_HOSTS)


@pytest.mark.parametrize("text", ["see /work/venv/bin", "File /root/x.py", "cd /Users/ann/x", "'/home/ann/x'"])
def test_machine_paths_are_detected(text: str) -> None:
    assert MACHINE_PATHS.search(text)


@pytest.mark.parametrize("text", ["~/root/x", "/home/jovyan/work", "docs/home/x", "/user/x/openruntime/", "/usr/bin/python3"])
def test_other_paths_are_allowed(text: str) -> None:
    assert not MACHINE_PATHS.search(text)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_notebook_has_outputs_of_one_clean_run(path: Path) -> None:
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs, "no outputs"
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "token=" not in json.dumps(outputs), "URL with a token"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_of_documents_are_valid(path: Path) -> None:
    broken = []
    for target in LINK.findall(FENCED.sub("", path.read_text())):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert not broken


def test_make_help_lists_all_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.findall(r"make ([\w-]+)\t", shown) == phony[1].split()


@pytest.mark.parametrize("path", sorted((ROOT / "tools").iterdir()), ids=lambda path: path.name)
def test_tool_is_executable_script(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    source = path.read_text()
    if source.startswith("#!/usr/bin/env python3\n"):
        compile(source, path, "exec")
    else:
        assert source.startswith("#!/bin/sh\n# ")
        subprocess.run(["sh", "-n", path], check=True, timeout=60)


def test_find_python_advises_how_to_install_python() -> None:
    done = subprocess.run(
        ["tools/find-python"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
    assert not done.stdout


def test_exceptions_from_security_rules_have_reasons() -> None:
    assert runpy.run_path(str(ROOT / "tools" / "audit"))["unexplained"]() == []
