"""`jupyter openruntime`: serve, or ask a server that runs. What a command does not need it does not import."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from openruntime_jupyter import __version__

ASKING = ("status", "tasks", "cancel")
"""Commands that ask a server which runs."""

DESCRIPTION = "One shared, visible, killable queue for MLX work. Without a command it serves the API on http://localhost:8000."
EPILOG = """\
commands:
  jupyter openruntime                serve, until Ctrl-C
  jupyter openruntime status         health, devices and figures of the server
  jupyter openruntime tasks          the newest tasks
  jupyter openruntime cancel ID      cancel a task
  jupyter openruntime pull           fetch a small model that answers prompts here, without any account
  Each has a --help of its own.

Programs of this machine need no token, but to run code of their own (the operations python and call): the token for
that is printed at the start. Every setting of the runtime can be given too, such as --OpenRuntimeApp.cpu_slots=4;
--help-all lists them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # `| head` has seen enough; Python would complain once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ASKING:
        from openruntime_jupyter.cli.ask import ask

        return ask(arguments)
    if arguments and arguments[0] == "pull":
        from openruntime_jupyter.cli.pull import main as pull

        return pull(arguments[1:])
    if arguments and arguments[0] == "serve":
        del arguments[0]
    return _serve(arguments)


def parser() -> argparse.ArgumentParser:
    """What `jupyter openruntime` itself takes."""
    made = argparse.ArgumentParser(
        "jupyter openruntime",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--port", type=_port, metavar="N", help="port to listen on; 0 takes any that is free (default: 8000)")
    made.add_argument(
        "--ip", metavar="ADDRESS", help="address to listen on; beyond the loopback a token of your own is needed (default: localhost)"
    )
    made.add_argument(
        "--token",
        metavar="SECRET",
        help="the token; $JUPYTER_TOKEN keeps it out of the list of processes (default: made and printed at each start)",
    )
    made.add_argument("--require-token", action="store_true", help="let no request in without the token, not even from this machine")
    made.add_argument(
        "--production",
        action="store_true",
        help="limit each user or address to 1,000 requests a minute, 100 connections and 10 WebSockets (--help-all has the settings)",
    )
    made.add_argument("--data-dir", metavar="FOLDER", help="where the history lies (default: $OPENRUNTIME_DATA_DIR, or your data folder)")
    made.add_argument("--debug", action="store_true", help="log everything")
    made.add_argument("--version", action="version", version=__version__)
    made.add_argument("--help-all", action="store_true", help="list every setting")
    return made


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def _serve(arguments: list[str]) -> int:
    options, others = parser().parse_known_args(arguments)
    stray = [argument for argument in others if not (argument.startswith("--") and "." in argument.split("=")[0])]
    if stray:
        near = get_close_matches(stray[0].partition("=")[0], [*ASKING, "pull", *re.findall(r"--[a-z-]+", parser().format_usage())], 1)
        advice = f"did you mean {near[0]}?" if near else "settings are given as --Class.name=value"
        parser().error(f"{' '.join(stray)} is not understood; {advice}")
    # Jupyter's schemas would load this one, which takes over a second, to check a kind of address that we never use.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from openruntime_jupyter.server.standalone import every_setting, serve

    if options.help_all:
        print(every_setting(), flush=True)
        return 0
    return serve(others, _config(options))


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """The options in traitlets' words."""
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
