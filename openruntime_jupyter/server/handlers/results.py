"""What a task showed, and the opaque result that only its submitter opens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import BinaryIO

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter.models import TaskOutput
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.http.requests import OutputQuery
from openruntime_jupyter.server.openapi.decorator import BYTES, Answer, Parameter, described

CHUNK = 1_048_576

PAYLOAD = Answer(
    description="The bytes. A cloudpickle runs code when it is loaded: load it only if you trust the task's.",
    media={"application/octet-stream": BYTES},
    headers=(Parameter("X-OpenRuntime-Encoding", "How they are encoded."),),
)


class OutputHandler(Handler):
    """`GET /tasks/{id}/output`."""

    @described("Tasks", TaskOutput, query=OutputQuery)
    @web.authenticated
    @authorized
    async def get(self, task_id: str) -> None:
        """What the task showed from `since` on; with `wait`, as soon as there is something."""
        query = self.query(OutputQuery)
        runtime = await self.runtime()
        self.reply(await self.while_connected(runtime.output(task_id, query.since, query.wait, query.record)))


class PayloadHandler(Handler):
    """`GET /tasks/{id}/payload`."""

    @described("Tasks", PAYLOAD, errors={404: "There is no such task, or it has no payload."})
    @web.authenticated
    @authorized
    async def get(self, task_id: str) -> None:
        """The bytes, as they are; how they are encoded stands in the task's result."""
        runtime = await self.runtime()
        payload, encoding = await runtime.payload(task_id)
        self.set_header("X-OpenRuntime-Encoding", encoding)
        self.set_header("Content-Disposition", f'attachment; filename="{task_id}"')
        if isinstance(payload, Path):
            await self._send(payload)
            self.finish(set_content_type="application/octet-stream")
        else:
            self.finish(payload, set_content_type="application/octet-stream")

    async def _send(self, path: Path) -> None:
        """A file piece by piece, read off the loop, no faster than the client takes it."""
        with await asyncio.to_thread(path.open, "rb") as file:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            if self.request.method == "HEAD":
                await self.flush()
                return
            while chunk := await asyncio.to_thread(_read, file):
                await self.pass_on(chunk)


def _read(file: BinaryIO) -> bytes:
    return file.read(CHUNK)
