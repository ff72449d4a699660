"""The command `jupyter openruntime`: start a server, or query a running one. Each command imports only what it needs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from openruntime_jupyter import __version__

QUERIES = ("status", "tasks", "cancel")
"""Commands that need a running server."""

DESCRIPTION = "One shared, visible, killable queue for MLX work. Without a command, it serves the API on http://localhost:8000."
EPILOG = """\
commands:
  jupyter openruntime                serve, until Ctrl-C
  jupyter openruntime status         show server health, devices and metrics
  jupyter openruntime tasks          list the newest tasks
  jupyter openruntime cancel ID      cancel a task
  jupyter openruntime pull           install a local model; no account is needed
  Use --help with a command for its options.

Local programs need the token only to run their own code (the operations python and call). The server prints the token
when it starts. Every runtime setting is also an option, such as --OpenRuntimeApp.cpu_slots=4; --help-all lists them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader, such as `| head`, has exited; without dup2, Python fails again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in QUERIES:
        from openruntime_jupyter.cli.ask import ask

        return ask(arguments)
    if arguments and arguments[0] == "pull":
        from openruntime_jupyter.cli.pull import main as pull

        return pull(arguments[1:])
    if arguments and arguments[0] == "serve":
        del arguments[0]
    return _serve(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser for `jupyter openruntime` without a command."""
    made = argparse.ArgumentParser(
        "jupyter openruntime",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--port", type=_port, metavar="N", help="port to listen on; 0 picks a free port (default: 8000)")
    made.add_argument("--ip", metavar="ADDRESS", help="address to listen on; a non-loopback address requires --token (default: localhost)")
    made.add_argument(
        "--token",
        metavar="SECRET",
        help="access token; $JUPYTER_TOKEN hides it from the process list (default: a new token, printed at each start)",
    )
    made.add_argument("--require-token", action="store_true", help="require the token for every request, including local ones")
    made.add_argument(
        "--production",
        action="store_true",
        help="limit each user or address to 1,000 requests a minute, 100 connections and 10 WebSockets (--help-all has the settings)",
    )
    made.add_argument(
        "--data-dir", metavar="FOLDER", help="folder of the task history (default: $OPENRUNTIME_DATA_DIR, or your data folder)"
    )
    made.add_argument("--debug", action="store_true", help="enable debug logging")
    made.add_argument("--version", action="version", version=__version__)
    made.add_argument("--help-all", action="store_true", help="list all settings")
    return made


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port: use 0 to 65535")
    return int(text)


def _serve(arguments: list[str]) -> int:
    options, others = parser().parse_known_args(arguments)
    stray = [argument for argument in others if not (argument.startswith("--") and "." in argument.split("=")[0])]
    if stray:
        near = get_close_matches(stray[0].partition("=")[0], [*QUERIES, "pull", *re.findall(r"--[a-z-]+", parser().format_usage())], 1)
        advice = f"did you mean {near[0]}?" if near else "write settings as --Class.name=value"
        parser().error(f"unknown argument {' '.join(stray)}; {advice}")
    # jupyter_events' schemas would import rfc3987_syntax (over 1 s) to check a format that we never use.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from openruntime_jupyter.server.standalone import every_setting, serve

    if options.help_all:
        print(every_setting(), flush=True)
        return 0
    return serve(others, _config(options))


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options as a traitlets config dict."""
    server = {"port": options.port, "ip": options.ip, "log_level": "DEBUG" if options.debug else None}
    identity = {"token": options.token, "allow_local": False if options.require_token else None}
    return {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in (
            ("ServerApp", server),
            ("StandaloneIdentity", identity),
            ("OpenRuntimeApp", {"data_dir": options.data_dir, "production": options.production or None}),
        )
    }
