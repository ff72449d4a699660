"""Stand-alone server of `jupyter openruntime`, which serves only the runtime, by default at the root of port 8000."""

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
from openruntime_jupyter.engines.hosts.finder import InvalidHosts
from openruntime_jupyter.environment import is_loopback
from openruntime_jupyter.runtime.hosts import hosts_of
from openruntime_jupyter.server.app import OpenRuntimeApp
from openruntime_jupyter.server.auth.identity import StandaloneIdentity
from openruntime_jupyter.server.auth.rate_limit import LimitsTraits
from openruntime_jupyter.server.services import STALLED_SECONDS
from openruntime_jupyter.server.traits import AiTraits, SettingsTraits

PROGRAM = "jupyter openruntime"


def print_message(text: str, stream: TextIO | None = None) -> None:
    """Print a message for the user. Ignore a closed stream."""
    with contextlib.suppress(OSError, ValueError):
        (stream or sys.stdout).write(f"{text}\n")
        (stream or sys.stdout).flush()


class StandaloneServer(ServerApp):
    """Jupyter Server without notebooks."""

    name = "jupyter-openruntime"
    version = __version__
    description = "The OpenRuntime service without Jupyter's notebooks. The settings can also be set in jupyter_openruntime_config.py."
    classes = [OpenRuntimeApp, StandaloneIdentity]  # noqa: RUF012  # traitlets' way
    flags = Dict()
    aliases = Dict()
    subcommands = {}  # noqa: RUF012
    default_services = ()  # type: ignore[assignment]
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
        # Containers often run as root, and the server does not need to change users.
        return True

    @default("no_browser_open_file")
    def _no_page(self) -> bool:
        return True

    def refuse(self, message: str) -> NoReturn:
        """Print why the server cannot start and how to fix that, then exit."""
        print_message(f"{PROGRAM}: {message}", sys.stderr)
        sys.exit(1)

    @property
    def reachable_from_elsewhere(self) -> bool:
        """True if other machines can reach the listening address."""
        if self.sock:
            return False
        try:
            found = socket.getaddrinfo(self.ip or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except socket.gaierror as problem:
            self.refuse(f"Unknown address {self.ip!r} ({problem.strerror}): use an address of a local interface, or omit --ip")
        return not all(is_loopback(str(address[0])) for *_, address in found)

    def init_httpserver(self) -> None:
        """Bind the port, and explain how to fix a port that is in use."""
        try:
            for probe in [] if self.sock else bind_sockets(self.port, self.ip):
                probe.close()
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE and not self.port_retries:
                self.refuse(
                    f"Port {self.port} is in use, maybe by another OpenRuntime (check with `{PROGRAM} status`): "
                    f"start with --port={self.port + 1}, or with --port=0 for any free port"
                )
            if problem.errno == errno.EACCES:
                self.refuse(f"No permission to listen on port {self.port}: choose a port above 1023, for example --port=8000")
            if problem.errno == errno.EADDRNOTAVAIL:
                self.refuse(f"The address {self.ip!r} does not belong to this machine: omit --ip to listen on the loopback interface")
        super().init_httpserver()
        # Also closes idle connections. Handlers limit the time for bodies.
        self.http_server.conn_params.header_timeout = STALLED_SECONDS

    def init_signal(self) -> None:
        """Install handlers that stop the server at the first Ctrl-C without confirmation."""
        super().init_signal()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop_at)

    def stop_at(self, number: int, _frame: Any) -> None:
        """Stop cleanly; a second signal ends the process at once."""
        signal.signal(number, signal.SIG_DFL)
        # Printed by the event loop, because a signal handler may interrupt a print call, which is not reentrant.
        self.io_loop.add_callback_from_signal(print_message, "Stopping (press Ctrl-C again to stop immediately)")
        self.stop(from_signal=True)

    def start_app(self) -> None:
        """Start the server and print its address once it listens."""
        for app in self.extension_manager.extension_apps["openruntime_jupyter"]:
            try:
                hosts_of(app.settings_of())
            except InvalidHosts as problem:
                self.refuse(str(problem))
        super().start_app()
        self.io_loop.add_callback(self.greet)

    def greet(self) -> None:
        """Print the address of the server and how to authenticate."""
        provider = self.identity_provider
        url = self._get_urlparts().geturl().rstrip("/")
        lines = [f"OpenRuntime {__version__} listens on {url}"]
        generated = isinstance(provider, StandaloneIdentity) and provider.has_generated_token
        token = f"Authorization: token {provider.token if generated else '<your token>'}"
        local = isinstance(provider, StandaloneIdentity) and provider.allow_local and not self.allow_remote_access
        if local:
            lines.append("Local programs need the token only to run their own code (python, call):")
        else:
            lines.append("Every request needs the token:")
        dashboard = f"{url}/dashboard" + (f"?token={provider.token}" if generated else "" if local else "?token=<your token>")
        print_message("\n    ".join([*lines, token]) + f"\nDashboard:\n    {dashboard}\nPress Ctrl-C to stop it.")


def every_setting() -> str:
    """Return the help of all settings of the runtime and of authentication."""
    settings: list[tuple[type[Configurable], str]] = [
        (OpenRuntimeApp, name) for group in (SettingsTraits, AiTraits, LimitsTraits) for name in group.class_own_traits(config=True)
    ]
    settings += [(StandaloneIdentity, name) for name in StandaloneIdentity.class_own_traits(config=True)]
    sections = [kind.class_get_trait_help(kind.class_traits()[name]) for kind, name in settings]
    sections.append(
        "The settings of Jupyter Server apply as well, for example --ServerApp.certfile=FILE: `jupyter server --help-all` lists them."
    )
    return "\n".join(sections)


def serve(arguments: Sequence[str], config: dict[str, Any]) -> int:
    """Run the server until it is stopped, and return the exit code.

    `arguments` have the format of traitlets (`--Class.trait=value`); `config` has the settings from short command-line options.
    """
    server = StandaloneServer.instance(config=Config(config), jpserver_extensions={"openruntime_jupyter": True})
    server.initialize(argv=list(arguments), find_extensions=False, starter_extension=OpenRuntimeApp.name)
    server.start()
    return 0
