"""Identity of callers: notebooks of this server with its secret, and local programs of the same user without a token.

The server's identity provider handles all other callers.
"""

from __future__ import annotations

import getpass
import hmac
import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from jupyter_server.auth.authorizer import AllowAllAuthorizer
from jupyter_server.auth.identity import IdentityProvider, User
from tornado import web
from traitlets import Bool

from openruntime_jupyter.environment import is_loopback

GENERATED = re.compile(r"[0-9a-f]{32}")
"""User name that Jupyter generates for each request with the shared token or password and without a cookie."""

WHICH_TOKEN = "send the server's token as `Authorization: token <token>`"


@cache
def own_name() -> str:
    """Return the owner of this server: the JupyterHub user or the system user. Cached, because the lookup reads the user list."""
    try:
        return os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return f"uid {os.getuid()}"


def owner_of(user: User | None) -> str | None:
    """Return the owner of this user's tasks, which is the same for every request of a login; None without a login."""
    if user is None or isinstance(user, LocalUser):
        return None
    return own_name() if GENERATED.fullmatch(user.username) else user.username


def token_of(provider: IdentityProvider, handler: web.RequestHandler) -> str:
    """Return the token of a request from the header or the query; empty if missing or unreadable."""
    try:
        return provider.get_token(handler) or ""
    except web.HTTPError:  # not valid text
        return ""


def same(one: str, other: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))


class ExplainedRefusal:
    """Part of a handler that tells its client why the identity provider rejected the request."""

    refusal: str | None = None
    """Reason for rejecting the request, if there is a specific one."""


class LocalUser(User):
    """Local user without a login."""


class OwnUser(LocalUser):
    """Local user without a login, whose process belongs to the same system user as the server."""


class NotebookIdentity(IdentityProvider):
    """Identity provider for notebooks of this server, which inherit a secret of this run through their environment.

    Only the extension's handlers use it, so the secret gives no access to other routes of Jupyter.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(token=secrets.token_urlsafe(32), **options)
        self.authorizer = AllowAllAuthorizer(identity_provider=self)

    def presented_by(self, handler: web.RequestHandler) -> bool:
        """Return True if the request has the secret."""
        return same(token_of(self, handler), self.token)

    def get_user(self, handler: web.RequestHandler) -> User:
        """Return the owner of the server."""
        handler._token_authenticated = True  # type: ignore[attr-defined]  # noqa: SLF001
        return User(own_name(), "the notebook")


@dataclass(frozen=True)
class Peer:
    """Process at the other end of a connection: whether it is on this machine, and its user id, `UNKNOWABLE`, or None."""

    local: bool
    uid: int | None


class StandaloneIdentity(IdentityProvider):
    """Identity provider of a stand-alone server: clients with the token, and local programs without a token for safe operations."""

    allow_local = Bool(
        True,
        config=True,
        help="""Whether requests from the same machine are allowed without the token. Without the token, clients cannot run their own
        code. They can run the other operations, each for at most OpenRuntimeApp.untrusted_timeout seconds. False: every request
        needs the token. Ignored if the server listens on other interfaces than the loopback (--ip) or if
        ServerApp.allow_remote_access is set: the token is always required then. On Linux, only processes of the same user are
        allowed; on other systems, every local user is.
        """,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Jupyter would print a URL for browsers. The stand-alone server prints its own message instead.
        self.has_generated_token = bool(self.token) and self.token_generated
        self.token_generated = False
        self._peers: WeakKeyDictionary[Any, Peer] = WeakKeyDictionary()

    @property
    def login_available(self) -> bool:
        """Return False: a stand-alone server has no login page."""
        return False

    @property
    def logout_available(self) -> bool:
        """Return False: clients are not logged in by cookies."""
        return False

    def get_user(self, handler: web.RequestHandler) -> User | None:
        """Return the user of the token, or a local user on the extension's routes unless the request has to be rejected."""
        given = token_of(self, handler)
        if given:
            if not same(given, self.token):
                if isinstance(handler, ExplainedRefusal):
                    handler.refusal = "The token is wrong: use the one that the server prints when it starts"
                return None
            handler._token_authenticated = True  # type: ignore[attr-defined]  # noqa: SLF001
            return User(own_name())
        if not isinstance(handler, ExplainedRefusal):  # a route of Jupyter
            return None
        objection = self.objection(handler)
        handler.refusal = f"{objection}: {WHICH_TOKEN}" if objection else None
        if objection:
            return None
        return (OwnUser if self._peer(handler).uid == os.getuid() else LocalUser)("local", "a local program")

    def objection(self, handler: web.RequestHandler) -> str | None:
        """Return the reason why a request without a token is rejected, or None if it is allowed."""
        headers = handler.request.headers
        forwarded = [
            name for name in headers if name.lower().startswith("x-forwarded") or name.lower() in ("forwarded", "x-real-ip", "via")
        ]
        origin = headers.get("Origin") or headers.get("Sec-Websocket-Origin")
        if not self.allow_local:
            return "This server requires a token"
        if handler.settings.get("allow_remote_access"):
            return "This server accepts connections from other machines"
        peer = self._peer(handler)
        if not peer.local:
            return "The request does not come from this machine"
        if forwarded:
            return f"The request was forwarded ({', '.join(sorted(forwarded))})"
        if origin is not None and (urlsplit(origin).scheme, urlsplit(origin).netloc) != (handler.request.protocol, handler.request.host):
            return f"The request comes from another page ({origin})"
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "The request comes from another page"
        if peer.uid in (UNKNOWABLE, os.getuid()):
            return None
        return "The request was sent by another local user" if peer.uid is not None else "The user of the client is unknown"

    def _peer(self, handler: web.RequestHandler) -> Peer:
        """Return the client process. It is looked up once per connection."""
        connection: Any = handler.request.connection
        context = getattr(connection, "context", None)
        address = getattr(context, "address", None)
        if not isinstance(address, tuple):
            return Peer(local=False, uid=None)
        if context not in self._peers:
            local = is_loopback(address[0])
            self._peers[context] = Peer(local, uid_of_peer(connection.stream.socket) if local else None)
        return self._peers[context]

    def validate_security(self, app: Any, ssl_options: dict[str, Any] | None = None) -> None:
        """Refuse to start if unauthorized clients could get access."""
        if not self.token:
            app.refuse("An empty token would allow everyone to run code: omit --token to generate one")
        if self.has_generated_token and app.reachable_from_elsewhere:
            app.refuse(f"Listening on {app.ip or 'every address'} allows access from other machines: choose a token (--token=SECRET, or "
                       "the variable JUPYTER_TOKEN), or listen on 127.0.0.1 (omit --ip)")  # fmt: skip


ESTABLISHED = "01"
UNKNOWABLE = -1
"""Value for systems that do not report the user id."""


def uid_of_peer(connection: socket.socket, tables: Path = Path("/proc/net")) -> int | None:
    """Return the user id of the process at the other end of a local connection.

    Return `UNKNOWABLE` on systems that do not report it, and None if the system does not list the connection. Only connections
    that are still open at the other end count, because the kernel assigns closed ones to root.
    """
    if not sys.platform.startswith("linux"):
        return UNKNOWABLE
    here, there = connection.getsockname()[:2], connection.getpeername()[:2]
    for name, local, remote in _rows(there, here):
        try:
            lines = (tables / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[1] == local and fields[2] == remote and fields[3] == ESTABLISHED:
                return int(fields[7])
    return None


def _rows(local: tuple[str, int], remote: tuple[str, int]) -> Iterator[tuple[str, str, str]]:
    """Yield the tables and addresses under which the kernel may list the peer's socket."""
    version = ipaddress.ip_address(local[0].partition("%")[0]).version
    if version == 4:
        yield "tcp", _hexadecimal(local), _hexadecimal(remote)
        # The peer may use an IPv6 socket with a mapped IPv4 address.
        yield "tcp6", *(_hexadecimal((f"::ffff:{address}", port)) for address, port in (local, remote))  # type: ignore[misc]
    else:
        yield "tcp6", _hexadecimal(local), _hexadecimal(remote)


def _hexadecimal(address: tuple[str, int]) -> str:
    """Format an address like /proc/net: 32-bit words in native byte order, then the port."""
    packed = ipaddress.ip_address(address[0].partition("%")[0]).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
