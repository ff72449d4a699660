"""Models: those of this machine, which of them are in memory, and the remote providers."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from openruntime_jupyter.ai_models import ModelList, Unloaded
from openruntime_jupyter.server.http.base import Handler
from openruntime_jupyter.server.openapi.decorator import described


class ModelsHandler(Handler):
    """`GET /models`."""

    @described("AI", ModelList)
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The models that can be asked, and which of them are in memory."""
        service = await self.ai()
        self.reply(service.models(await self.caller()))


class ModelHandler(Handler):
    """`DELETE /models/{name}`."""

    @described("AI", Unloaded, errors={404: "No such model is in memory.", 409: "It answers a prompt now."})
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Unload a model that is in memory and idle; its memory is free when the answer comes."""
        service = await self.ai()
        self.reply(Unloaded(unloaded=await service.runtime.unload(name)))
