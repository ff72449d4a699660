"""Arrays: room for one, its bytes in and out, its end. No more than a piece of one is ever in this process's memory."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.utils import url_path_join
from pydantic_core import to_json
from tornado import web

from openruntime_jupyter.arrays import array_file
from openruntime_jupyter.arrays.blocks import LEASE_HEADER, LEASED
from openruntime_jupyter.errors import ArrayConflict, BodyTooLarge, MalformedRequest, gigabytes
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayPage, ArrayRequest
from openruntime_jupyter.server.auth.identity import owner_of
from openruntime_jupyter.server.handlers.uploads import Upload
from openruntime_jupyter.server.http import base
from openruntime_jupyter.server.http.base import ENVELOPE, Handler
from openruntime_jupyter.server.http.errors import envelope
from openruntime_jupyter.server.http.negotiation import preferred
from openruntime_jupyter.server.openapi.decorator import BYTES, JSON, Answer, Parameter, described

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.arrays.store import ArrayStore

SAFETENSORS = "application/vnd.safetensors"
BINARY = (SAFETENSORS, "application/octet-stream")
PIECE = 1 << 20
LET_PASS = 64 << 20
"""Bytes of a body that is read though it is refused."""
HEADER_SLACK = array_file.MAX_HEADER + array_file.LENGTH
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")

LOCATION = Parameter("Location", "The address of the array.")
RANGE = Parameter("Range", "Which bytes of the file are wanted, such as `bytes=0-1023`.")
LEASE = Parameter(LEASE_HEADER, f"`{LEASED}` from a program that holds a shared flock on each file that it opens by its `path`.")
EXAMPLES = {"A matrix": {"shape": [1024, 1024], "dtype": "float32"}}
FILE = {SAFETENSORS: BYTES}
DOWNLOADS = {
    200: Answer(ArrayInfo, "The file; or what is known of it, where JSON is accepted.", FILE),
    206: Answer(None, "The range.", FILE, (Parameter("Content-Range", "Which bytes they are."),)),
    304: Answer(None, "The client has it already: its `ETag` is in `If-None-Match`."),
}
DOWNLOAD_ERRORS = {409: "It is not complete yet.", 416: "The file has no such range."}
UPLOAD_ERRORS = {
    408: "No more of it came for two minutes.",
    409: "There is one of that id already.",
    422: "It is no safetensors file of one array.",
}


class _Telling(Handler):
    """What tells of arrays."""

    def telling(self, store: ArrayStore, told: ArrayInfo) -> ArrayInfo:
        """`told` as this client may know it: whoever does not lease what it opens keeps the file from being used again."""
        return told if self.request.headers.get(LEASE_HEADER) == LEASED else store.exposed(told)


class ArraysHandler(_Telling):
    """`/arrays`."""

    @described("Arrays", ArrayPage, headers=(LEASE,))
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Every array of this runtime, newest first."""
        store = (await self.runtime()).arrays
        page = store.page()
        self.reply(page.model_copy(update={"arrays": [self.telling(store, told) for told in page.arrays]}))

    @described("Arrays", {201: Answer(ArrayInfo, headers=(LOCATION,))}, body=ArrayRequest, examples=EXAMPLES, headers=(LEASE,))
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Take room for an array; its bytes come by PUT, or straight into its file from a program on the same machine."""
        wanted = self.body(ArrayRequest)
        layout = array_file.check_bounds(wanted.shape, wanted.dtype, wanted.kind)
        store = (await self.runtime()).arrays
        told = self.telling(store, await store.allocate(layout, owner_of(self.user)))
        self.reply(told, 201, {"Location": url_path_join(self.app.url_path, "arrays", told.id)})


class ArrayHandler(_Telling):
    """`/arrays/{id}`."""

    _upload: Upload | None = None
    _patience: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:  # type: ignore[override]
        """Who may not send, or sends too much, is told before the first byte of the array."""
        await super().prepare()
        if self.request.method != "PUT":
            return
        try:
            if self._refused is None:
                await self._begin(self.path_args[0])
        except Exception as problem:
            self.refuse(problem)
        if self._refused is not None and self._waits_or_sends_much():
            raise self._refused
        self._expect_more()

    def _expect_more(self) -> None:
        """Wait for the next piece of the body, but not for ever."""
        if self._is_closed:
            return
        self._patience = asyncio.get_running_loop().call_later(base.STALLED_SECONDS, self.send_error, 408)

    def _expect_nothing(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

    def _waits_or_sends_much(self) -> bool:
        """Whether to answer at once and hang up; else a client that still sends would not hear the answer, and the body is let pass."""
        headers = self.request.headers
        length = headers.get("Content-Length", "0")
        return "Expect" in headers or "Transfer-Encoding" in headers or int(length) > LET_PASS

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """As everywhere; tornado hangs up on who is answered before the end of the body."""
        if status_code == 408 or (self.request.method == "PUT" and self._waits_or_sends_much()):
            self.set_header("Connection", "close")
        super().write_error(status_code, **kwargs)

    async def _begin(self, array_id: str) -> None:
        if not await self.allowed("write"):
            raise web.HTTPError(403, "User is not authorized to write on resource: openruntime.")
        headers = self.request.headers
        kind = headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind not in BINARY:
            raise MalformedRequest(
                f"The body's content type is {kind or 'missing'}: send a safetensors file, with Content-Type: {SAFETENSORS}"
            )
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise MalformedRequest("The body is compressed: send it as it is")
        store = (await self.runtime()).arrays
        most = store.quota + HEADER_SLACK
        if int(headers.get("Content-Length") or 0) > most:
            raise BodyTooLarge(
                f"The array is larger than {gigabytes(store.quota)}, which all arrays together may have: raise OpenRuntimeApp.array_bytes"
            )
        store.require_free(array_id)
        self.request.connection.set_max_body_size(most)  # type: ignore[union-attr]
        self._upload = Upload(store, array_id, owner_of(self.user))

    async def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
        """A piece of the body; the next one is not read before this one is stored."""
        if self.request.method != "PUT":
            super().data_received(chunk)
            return
        self._expect_nothing()
        if self._upload is not None and self._refused is None:
            try:
                await self._upload.take(chunk)
            except Exception as problem:
                self.refuse(problem)
                await self._upload.abandon()
        self._expect_more()

    @described("Arrays", {201: ArrayInfo}, media=dict.fromkeys(BINARY, BYTES), headers=(LEASE,), errors=UPLOAD_ERRORS)
    @web.authenticated
    @authorized
    async def put(self, array_id: str) -> None:
        """The whole array has come."""
        self._expect_nothing()
        assert self._upload is not None
        told = await self._upload.finish()
        self.reply(self.telling((await self.runtime()).arrays, told), 201)

    def on_connection_close(self) -> None:
        """The client has gone: what it sent so far is of no use."""
        super().on_connection_close()
        self._leave_nothing()

    def on_finish(self) -> None:
        """It was answered: with an error, if the array is not complete by now."""
        super().on_finish()
        self._leave_nothing()

    def _leave_nothing(self) -> None:
        self._expect_nothing()
        if self._upload is not None:
            self.app.in_background(self._upload.abandon())

    @described("Arrays", DOWNLOADS, headers=(RANGE, LEASE), errors=DOWNLOAD_ERRORS)
    @web.authenticated
    @authorized
    async def get(self, array_id: str) -> None:
        """The array as a safetensors file, or a range of that; with `Accept: application/json` what is known of it."""
        runtime = await self.runtime()
        told = await runtime.arrays.info(array_id)
        if self._wants_words():
            self.reply(self.telling(runtime.arrays, told))
            return
        if told.state != "ready":
            raise ArrayConflict(f"The array {array_id} is not complete yet: ask again when it is")
        await self._send(told)

    def _wants_words(self) -> bool:
        """Whether JSON is liked better than the file; of what is liked alike, what is called by its name."""
        accepted = self.request.headers.get("Accept", "")
        named = "json" in accepted and not any(kind in accepted for kind in BINARY)
        return preferred(accepted, (JSON, *BINARY, ENVELOPE) if named else (*BINARY, JSON, ENVELOPE)) not in BINARY

    async def _send(self, told: ArrayInfo) -> None:
        descriptor = await asyncio.to_thread(array_file.open_for_reading, str(told.path), told.id)
        try:
            await asyncio.to_thread(array_file.read, descriptor, told.id)
            state = os.fstat(descriptor)
            etag = f'"{told.id}-{state.st_mtime_ns:x}"'
            for name, value in (("Accept-Ranges", "bytes"), ("ETag", etag), ("Vary", "Accept")):
                self.set_header(name, value)
            if self.check_etag_header():
                self.set_status(304)
                self.finish()
                return
            wanted = self._range(told.size, etag)
            if wanted is None:
                return
            first, last = wanted
            self.set_header("Content-Type", SAFETENSORS)
            self.set_header("Content-Disposition", f'attachment; filename="{told.id}.safetensors"')
            self.set_header("Content-Length", str(last - first + 1))
            while first <= last and self.request.method != "HEAD":
                piece = await asyncio.to_thread(os.pread, descriptor, min(PIECE, last - first + 1), first)
                if not piece:
                    raise ArrayConflict(f"The array {told.id} ends early")
                first += len(piece)
                await self.pass_on(piece)
            self.finish(set_content_type=SAFETENSORS)
        finally:
            os.close(descriptor)

    def _range(self, size: int, etag: str) -> tuple[int, int] | None:
        """First and last byte that are wanted, the status set accordingly; None where there is no such range, which is answered."""
        headers = self.request.headers
        # HTTP has ranges for GET alone.
        found = _RANGE.fullmatch(headers.get("Range", "")) if self.request.method == "GET" else None
        if found is None or found.groups() == ("", "") or headers.get("If-Range", etag).strip() != etag:
            return 0, size - 1
        first, last = found.groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        if begin > end or (first and last and int(last) < begin):
            self.set_status(416)
            self.set_header("Content-Range", f"bytes */{size}")
            self.finish(
                to_json(envelope(None, f"The file has {size} bytes: ask for a range within them")), set_content_type="application/json"
            )
            return None
        self.set_status(206)
        self.set_header("Content-Range", f"bytes {begin}-{end}/{size}")
        return begin, end

    @described("Arrays", ArrayInfo, errors={409: "It is another runtime's."})
    @web.authenticated
    @authorized
    async def delete(self, array_id: str) -> None:
        """Delete the array; those who use it now keep it to their end. The answer is what it was, without its file."""
        runtime = await self.runtime()
        told = await runtime.arrays.info(array_id)
        await runtime.arrays.remove(array_id)
        self.reply(told.model_copy(update={"path": None}))


class ArrayReadyHandler(_Telling):
    """`POST /arrays/{id}/ready`."""

    @described("Arrays", ArrayInfo, headers=(LEASE,), errors={409: "It is complete already, or is just being sent."})
    @web.authenticated
    @authorized
    async def post(self, array_id: str) -> None:
        """The file is filled: from now on it can be used, and not be changed."""
        store = (await self.runtime()).arrays
        self.reply(self.telling(store, await store.ready(array_id)))
