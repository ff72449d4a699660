"""`jupyter openruntime`: a lean server that is there for the runtime alone, at the root of port 8000."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from jupyter_server.serverapp import ServerApp
from tornado.netutil import bind_sockets
from traitlets import Dict, default
from traitlets.config import Config, Configurable

from openruntime_jupyter import __version__
from openruntime_jupyter.server.app import OpenRuntimeApp
from openruntime_jupyter.server.auth.identity import StandaloneIdentity
from openruntime_jupyter.server.auth.peer_credentials import is_loopback
from openruntime_jupyter.server.auth.rate_limit import LimitsTraits
from openruntime_jupyter.server.config.ai_traits import AiTraits
from openruntime_jupyter.server.config.traits import SettingsTraits

PROGRAM = "jupyter openruntime"


def say(text: str, stream: TextIO | None = None) -> None:
    """Tell whoever started the server; nobody may listen any more."""
    with contextlib.suppress(OSError, ValueError):
        (stream or sys.stdout).write(f"{text}\n")
        (stream or sys.stdout).flush()


class StandaloneServer(ServerApp):
    """Jupyter Server without its notebooks."""

    name = "jupyter-openruntime"
    version = __version__
    description = "The OpenRuntime service on its own. Its settings can also stand in jupyter_openruntime_config.py."
    classes = [OpenRuntimeApp, StandaloneIdentity]  # noqa: RUF012  # traitlets' way
    flags = Dict()
    aliases = Dict()
    subcommands = {}  # noqa: RUF012
    default_services = ("shutdown",)  # type: ignore[assignment]
    port_env = "OPENRUNTIME_PORT"
    port_default_value = 8000
    port_retries_env = "OPENRUNTIME_PORT_RETRIES"
    port_retries_default_value = 0

    @default("identity_provider_class")
    def _identity(self) -> type[StandaloneIdentity]:
        return StandaloneIdentity

    @default("reraise_server_extension_failures")
    def _nothing_without_the_extension(self) -> bool:
        return True

    @default("log_level")
    def _quiet(self) -> int:
        return logging.WARNING

    @default("allow_root")
    def _root_may(self) -> bool:
        # Containers run as root; nothing here needs another user's rights.
        return True

    @default("no_browser_open_file")
    def _no_page(self) -> bool:
        return True

    def refuse(self, message: str) -> NoReturn:
        """Say why it does not start, and what to do, and leave."""
        say(f"{PROGRAM}: {message}", sys.stderr)
        sys.exit(1)

    @property
    def reachable_from_elsewhere(self) -> bool:
        """Whether other machines reach the address that it listens on."""
        if self.sock:
            return False
        try:
            found = socket.getaddrinfo(self.ip or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as problem:
            self.refuse(f"There is no address {self.ip!r} here ({problem.strerror}): give an address of this machine, or leave --ip away")
        return not all(is_loopback(str(place[0])) for *_, place in found)

    def init_httpserver(self) -> None:
        """Jupyter's, with an answer for a port that is taken which says what to do."""
        try:
            for probe in [] if self.sock else bind_sockets(self.port, self.ip):
                probe.close()
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE and not self.port_retries:
                self.refuse(
                    f"Port {self.port} is taken, maybe by another OpenRuntime (`{PROGRAM} status` tells): "
                    f"start with --port={self.port + 1}, or with --port=0 for any that is free"
                )
            if problem.errno == errno.EACCES:
                self.refuse(f"You may not listen on port {self.port}: choose one above 1023, such as --port=8000")
            if problem.errno == errno.EADDRNOTAVAIL:
                self.refuse(f"This machine does not have the address {self.ip}: leave --ip away to listen on the loopback")
        super().init_httpserver()

    def init_signal(self) -> None:
        """Stop at the first Ctrl-C, without a question: nothing is lost that the history does not keep."""
        super().init_signal()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop_at)

    def stop_at(self, number: int, _frame: Any) -> None:
        """Stop cleanly; a second signal ends the process at once."""
        signal.signal(number, signal.SIG_DFL)
        # Said by the loop: a print that is interrupted right here would not take a second one.
        self.io_loop.add_callback_from_signal(say, "Stopping (once more: at once)")
        self.stop(from_signal=True)

    def start_app(self) -> None:
        """Jupyter's; then tell where it is, once it listens there."""
        super().start_app()
        self.io_loop.add_callback(self.greet)

    def greet(self) -> None:
        """Tell where it is and what it wants."""
        provider = self.identity_provider
        lines = [f"OpenRuntime {__version__} listens on {self._get_urlparts().geturl().rstrip('/')}"]
        generated = isinstance(provider, StandaloneIdentity) and provider.token_is_ours
        token = f"Authorization: token {provider.token if generated else '<the one you chose>'}"
        local = isinstance(provider, StandaloneIdentity) and provider.allow_local and not self.allow_remote_access
        if local:
            lines.append("Programs of this machine need no token, but to run code of their own (python, call). The token:")
        else:
            lines.append("Every request needs the token:")
        say("\n    ".join([*lines, token]) + "\nCtrl-C stops it.")


def every_setting() -> str:
    """Help for each setting of the runtime and of who is let in."""
    ours: list[tuple[type[Configurable], str]] = [
        (OpenRuntimeApp, name) for group in (SettingsTraits, AiTraits, LimitsTraits) for name in group.class_own_traits(config=True)
    ]
    ours += [(StandaloneIdentity, name) for name in StandaloneIdentity.class_own_traits(config=True)]
    told = [kind.class_get_trait_help(kind.class_traits()[name]) for kind, name in ours]
    told.append(
        "The settings of Jupyter Server itself apply too, such as --ServerApp.certfile=FILE: `jupyter server --help-all` lists them."
    )
    return "\n".join(told)


def serve(arguments: Sequence[str], config: dict[str, Any]) -> int:
    """Run the server until it is stopped; the exit code.

    `arguments` are traitlets' own (`--Class.trait=value`), `config` holds what the command line gave by shorter names.
    """
    server = StandaloneServer.instance(config=Config(config), jpserver_extensions={"openruntime_jupyter": True})
    server.initialize(argv=list(arguments), find_extensions=False, starter_extension=OpenRuntimeApp.name)
    server.start()
    return 0
