"""Who asks: a notebook of this server by its secret, and a program of this user on this machine without any.

Everyone else is the business of the server's own identity provider.
"""

from __future__ import annotations

import getpass
import hmac
import os
import re
import secrets
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from jupyter_server.auth.authorizer import AllowAllAuthorizer
from jupyter_server.auth.identity import IdentityProvider, User
from tornado import web
from traitlets import Bool

from openruntime_jupyter.server.auth.peer_credentials import UNKNOWABLE, is_loopback, uid_of_peer

if TYPE_CHECKING:
    from openruntime_jupyter.server.http.base import BaseHandler

GENERATED = re.compile(r"[0-9a-f]{32}")
"""The name that Jupyter invents, for each request without a cookie anew, for who came with the shared token or password."""

WHICH_TOKEN = "send the server's token as `Authorization: token <token>`"


@cache
def own_name() -> str:
    """Whose server this is: the Hub's user, else the system's; looked up once, as the system reads its list of users for it."""
    try:
        return os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def owner_of(user: User | None) -> str | None:
    """To whom a task of this user belongs: always the same person for the same login; None for nobody in particular."""
    if user is None or isinstance(user, LocalUser):
        return None
    return own_name() if GENERATED.fullmatch(user.username) else user.username


def token_of(provider: IdentityProvider, handler: web.RequestHandler) -> str:
    """The token that a request carries, in the header or the query; empty if there is none that can be read."""
    try:
        return provider.get_token(handler) or ""
    except web.HTTPError:  # not even text
        return ""


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))


class LocalUser(User):
    """Somebody on this machine, who did not log in."""


class OwnUser(LocalUser):
    """The server's own user, as the system proves, who did not log in either."""


class NotebookIdentity(IdentityProvider):
    """The notebooks of this server, known by a secret of this run that they inherit through their environment.

    Only our own handlers ask it: the secret opens nothing else of Jupyter's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(token=secrets.token_urlsafe(32), **options)
        self.authorizer = AllowAllAuthorizer(identity_provider=self)

    def presented_by(self, handler: web.RequestHandler) -> bool:
        """Whether the request carries the secret."""
        return same(token_of(self, handler), self.token)

    def get_user(self, handler: web.RequestHandler) -> User:
        """The owner of the server, as their notebook."""
        handler._token_authenticated = True  # type: ignore[attr-defined]  # noqa: SLF001
        return User(own_name(), "the notebook")


class StandaloneIdentity(IdentityProvider):
    """Who may use a stand-alone server: whoever has its token, and, for what is safe, the programs of this machine without one."""

    allow_local = Bool(
        True,
        config=True,
        help="""Whether requests from this machine need no token. Without one nobody can run code of their own, only the other
        operations, each at most OpenRuntimeApp.untrusted_timeout seconds long. False: every request needs the token.
        Without effect where the server listens beyond the loopback (--ip) or ServerApp.allow_remote_access is set: the token is
        always needed there. On Linux only processes of the same user are let in; elsewhere every user of this machine is.
        """,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Jupyter would print an address for browsers; ours prints what its users need.
        self.token_is_ours = bool(self.token) and self.token_generated
        self.token_generated = False
        self._uids: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()

    @property
    def login_available(self) -> bool:
        """There is no login page."""
        return False

    @property
    def logout_available(self) -> bool:
        """Nor anything to log out from: no cookie is set."""
        return False

    def get_user(self, handler: web.RequestHandler) -> User | None:
        """Whoever has the token; on our own routes also a local program, if nothing about the request speaks against it."""
        given = token_of(self, handler)
        if given:
            if not same(given, self.token):
                handler.refusal = "This is not the server's token: it is printed when the server starts"  # type: ignore[attr-defined]
                return None
            handler._token_authenticated = True  # type: ignore[attr-defined]  # noqa: SLF001
            return User(own_name())
        if not hasattr(handler, "refusal"):  # one of Jupyter's own routes
            return None
        objection = self.objection(handler)
        handler.refusal = f"{objection}, so {WHICH_TOKEN}" if objection else None
        if objection:
            return None
        kind = OwnUser if self._uids.get(handler.request.connection.context) == os.getuid() else LocalUser  # type: ignore[union-attr]
        return kind("local", "a program on this machine")

    def objection(self, handler: BaseHandler | web.RequestHandler) -> str | None:
        """What keeps a request without a token out; None if nothing does."""
        headers = handler.request.headers
        address = getattr(getattr(handler.request.connection, "context", None), "address", None)
        forwarded = [
            name for name in headers if name.lower().startswith("x-forwarded") or name.lower() in ("forwarded", "x-real-ip", "via")
        ]
        origin = headers.get("Origin") or headers.get("Sec-Websocket-Origin")
        if not self.allow_local:
            return "This server lets nobody in without a token"
        if handler.settings.get("allow_remote_access"):
            return "This server can be reached from other machines"
        if not (isinstance(address, tuple) and is_loopback(address[0])):
            return "The request does not come from this machine"
        if forwarded:
            return f"The request was forwarded ({', '.join(sorted(forwarded))})"
        if origin is not None and (urlsplit(origin).scheme, urlsplit(origin).netloc) != (handler.request.protocol, handler.request.host):
            return f"The request comes from another page ({origin})"
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "The request comes from another page"
        return self._foreign_user(handler)

    def _foreign_user(self, handler: web.RequestHandler) -> str | None:
        """Why the process at the other end may not come in; looked up once a connection."""
        connection: Any = handler.request.connection
        if connection.context not in self._uids:
            self._uids[connection.context] = uid_of_peer(connection.stream.socket)
        uid = self._uids[connection.context]
        if uid in (UNKNOWABLE, os.getuid()):
            return None
        return "The request comes from another user of this machine" if uid is not None else "It can't be told which user sent the request"

    def validate_security(self, app: Any, ssl_options: dict[str, Any] | None = None) -> None:
        """Refuse to start where strangers could come in."""
        if not self.token:
            app.refuse("An empty token would let everyone run code: leave --token away, and one is made")
        if self.token_is_ours and app.reachable_from_elsewhere:
            app.refuse(f"Listening on {app.ip or 'every address'} lets other machines in: choose a token (--token=SECRET, or the variable "
                       "JUPYTER_TOKEN), or listen on 127.0.0.1 (leave --ip away)")  # fmt: skip
