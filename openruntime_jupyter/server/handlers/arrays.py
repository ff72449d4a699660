"""Handlers that allocate, upload, download and delete arrays. Arrays are streamed in chunks, never loaded as a whole."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any

from jupyter_server.utils import url_path_join
from pydantic_core import to_json
from tornado import web

from openruntime_jupyter.arrays import array_file, array_layout
from openruntime_jupyter.errors import ArrayConflict, BodyTooLarge, MalformedRequest, gigabytes
from openruntime_jupyter.runtime.arrays.upload import Upload
from openruntime_jupyter.schemas import endpoints as api
from openruntime_jupyter.schemas.arrays import ArrayInfo, ArrayRequest
from openruntime_jupyter.schemas.endpoints import BINARY, ENVELOPE, JSON, SAFETENSORS
from openruntime_jupyter.schemas.problems import HTTP_CODES
from openruntime_jupyter.schemas.values import LEASE_HEADER, LEASED
from openruntime_jupyter.server.auth.identity import owner_of
from openruntime_jupyter.server.http.base import Handler, serves
from openruntime_jupyter.server.http.errors import Problem, envelope
from openruntime_jupyter.server.http.requests import preferred

if TYPE_CHECKING:
    from openruntime_jupyter.runtime.arrays.store import ArrayStore

CHUNK = 1 << 20
MAX_DISCARDED = 64 << 20
"""Maximum size of a rejected body that is read to its end, in bytes."""
HEADER_SLACK = array_layout.MAX_HEADER + array_layout.LENGTH
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")


class _ArrayBaseHandler(Handler):
    """Base class of the array handlers."""

    def visible_info(self, store: ArrayStore, info: ArrayInfo) -> ArrayInfo:
        """Return `info` for this client. If the client may open the file without a lease, the store no longer reuses the file."""
        return info if self.request.headers.get(LEASE_HEADER) == LEASED else store.exposed(info)


class ArraysHandler(_ArrayBaseHandler):
    """Handler of `/arrays`."""

    @serves(api.LIST_ARRAYS)
    async def get(self) -> None:
        """List the arrays of this runtime, newest first."""
        store = (await self.runtime()).arrays
        page = store.page()
        self.reply(page.model_copy(update={"arrays": [self.visible_info(store, info) for info in page.arrays]}))

    @serves(api.ALLOCATE_ARRAY)
    async def post(self) -> None:
        """Allocate an array. Upload its data with PUT, or write it to its file from a program on the same machine."""
        request = await self.body(ArrayRequest)
        layout = array_layout.check_bounds(request.shape, request.dtype, request.kind)
        store = (await self.runtime()).arrays
        info = self.visible_info(store, await store.allocate(layout, owner_of(self.user)))
        self.reply(info, 201, {"Location": url_path_join(self.services.options.url_path, "arrays", info.id)})


class ArrayHandler(_ArrayBaseHandler):
    """Handler of `/arrays/{id}`."""

    _upload: Upload | None = None

    async def prepare(self) -> None:  # type: ignore[override]
        """Check permission and size before the first byte of the array is received."""
        await super().prepare()
        if self.request.method != "PUT":
            return
        try:
            if self._refused is None:
                await self._begin(self.path_args[0])
        except Exception as problem:
            self.refuse(problem)
        if self._refused is not None and self._must_respond_early():
            raise self._refused

    def _must_respond_early(self) -> bool:
        """Return True to respond at once and close the connection, or False to read the body first for clients that read late."""
        headers = self.request.headers
        length = headers.get("Content-Length", "0")
        return "Expect" in headers or "Transfer-Encoding" in headers or int(length) > MAX_DISCARDED

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the error, and close the connection if the response is sent before the end of the body."""
        if self.request.method == "PUT" and self._must_respond_early():
            self.set_header("Connection", "close")
        super().write_error(status_code, **kwargs)

    async def _begin(self, array_id: str) -> None:
        if not await self.allowed("write"):
            raise web.HTTPError(403, "User is not authorized to write on resource: openruntime.")
        headers = self.request.headers
        media_type = headers.get("Content-Type", "").split(";")[0].strip().lower()
        if media_type not in BINARY:
            raise MalformedRequest(
                f"The body's content type is {media_type or 'missing'}: send a safetensors file, with Content-Type: {SAFETENSORS}"
            )
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise MalformedRequest("The body is compressed: send it uncompressed")
        store = (await self.runtime()).arrays
        limit = store.quota + HEADER_SLACK
        if int(headers.get("Content-Length") or 0) > limit:
            raise BodyTooLarge(
                f"The array is larger than the limit of {gigabytes(store.quota)} for all arrays: raise OpenRuntimeApp.array_bytes"
            )
        if store.complete(array_id) is None:
            store.require_free(array_id)
        self.request.connection.set_max_body_size(limit)  # type: ignore[union-attr]
        self._upload = Upload(store, array_id, owner_of(self.user))

    async def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
        """Store a chunk of the body before the next one is read."""
        if self.request.method != "PUT":
            super().data_received(chunk)
            return
        self.end_wait()
        self._size += len(chunk)
        if self._upload is not None and self._refused is None:
            try:
                await self._upload.write(chunk)
            except Exception as problem:
                self.refuse(problem)
                await self._upload.abandon()
        self.await_body()

    @serves(api.PUT_ARRAY)
    async def put(self, array_id: str) -> None:
        """Upload the complete array as a safetensors file.

        An upload whose response was lost can be repeated: the same shape, element type and bytes return the array with 200.
        """
        assert self._upload is not None
        info = await self._upload.finish()
        self.reply(self.visible_info((await self.runtime()).arrays, info), 200 if self._upload.repeated else 201)

    def on_connection_close(self) -> None:
        """Delete an incomplete upload when the client disconnects."""
        super().on_connection_close()
        self._abandon_upload()

    def on_finish(self) -> None:
        """Delete an incomplete upload after an error response."""
        super().on_finish()
        self._abandon_upload()

    def _abandon_upload(self) -> None:
        if self._upload is not None:
            self.services.in_background(self._upload.abandon())

    @serves(api.GET_ARRAY)
    async def get(self, array_id: str) -> None:
        """Download the array as a safetensors file or a range of it. With `Accept: application/json`, return its metadata."""
        runtime = await self.runtime()
        info = await runtime.arrays.info(array_id)
        if self._prefers_json():
            self.reply(self.visible_info(runtime.arrays, info))
            return
        if info.state != "ready":
            raise ArrayConflict(f"The array {array_id!r} is not complete yet: retry after the upload")
        await self._send(info)

    def _prefers_json(self) -> bool:
        """Return True if the client prefers JSON to the file. With equal quality, an explicitly named type wins."""
        accepted = self.request.headers.get("Accept", "")
        named = "json" in accepted and not any(kind in accepted for kind in BINARY)
        return preferred(accepted, (JSON, *BINARY, ENVELOPE) if named else (*BINARY, JSON, ENVELOPE)) not in BINARY

    async def _send(self, info: ArrayInfo) -> None:
        descriptor = await asyncio.to_thread(array_file.open_for_reading, str(info.path), info.id)
        try:
            await asyncio.to_thread(array_file.read, descriptor, info.id)
            state = os.fstat(descriptor)
            etag = f'"{info.id}-{state.st_mtime_ns:x}"'
            for name, value in (("Accept-Ranges", "bytes"), ("ETag", etag), ("Vary", "Accept")):
                self.set_header(name, value)
            if self.check_etag_header():
                self.set_status(304)
                self.finish()
                return
            byte_range = self._range(info.size, etag)
            if byte_range is None:
                return
            first, last = byte_range
            self.set_header("Content-Type", SAFETENSORS)
            self.set_header("Content-Disposition", f'attachment; filename="{info.id}.safetensors"')
            self.set_header("Content-Length", str(last - first + 1))
            while first <= last and self.request.method != "HEAD":
                chunk = await asyncio.to_thread(os.pread, descriptor, min(CHUNK, last - first + 1), first)
                if not chunk:
                    raise ArrayConflict(f"The file of the array {info.id!r} is truncated")
                first += len(chunk)
                await self.write_chunk(chunk)
            self.finish(set_content_type=SAFETENSORS)
        finally:
            os.close(descriptor)

    def _range(self, size: int, etag: str) -> tuple[int, int] | None:
        """Return the first and last requested byte, and set the status. For an invalid range, send the error and return None."""
        headers = self.request.headers
        # HTTP defines ranges for GET only.
        found = _RANGE.fullmatch(headers.get("Range", "")) if self.request.method == "GET" else None
        if found is None or found.groups() == ("", "") or headers.get("If-Range", etag).strip() != etag:
            return 0, size - 1
        first, last = found.groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        if begin > end or (first and last and int(last) < begin):
            self.set_status(416)
            self.set_header("Content-Range", f"bytes */{size}")
            problem = Problem(416, HTTP_CODES[416], f"The file has {size} bytes: request a range within them")
            self.finish(to_json(envelope(problem)), set_content_type="application/json")
            return None
        self.set_status(206)
        self.set_header("Content-Range", f"bytes {begin}-{end}/{size}")
        return begin, end

    @serves(api.DELETE_ARRAY)
    async def delete(self, array_id: str) -> None:
        """Delete the array and return its metadata. Tasks that use it can continue."""
        runtime = await self.runtime()
        info = await runtime.arrays.info(array_id)
        await runtime.arrays.remove(array_id)
        await self.reply_changed(info.model_copy(update={"path": None}))


class ArrayReadyHandler(_ArrayBaseHandler):
    """Handler of `POST /arrays/{id}/ready`."""

    @serves(api.MARK_ARRAY_READY)
    async def post(self, array_id: str) -> None:
        """Mark the array as complete after its file was written. It can then be used and no longer be changed."""
        store = (await self.runtime()).arrays
        await self.reply_changed(self.visible_info(store, await store.ready(array_id)))
