"""An answer as the value of the cell that has shown it."""

from __future__ import annotations

from dataclasses import fields

from openruntime_jupyter.client.ai_response import Reply
from openruntime_jupyter.notebook.session import Session


class ShownReply(Reply):
    """An answer that its cell has shown already: as the value of that cell it shows nothing more."""

    @classmethod
    def shown(cls, reply: Reply, session: Session) -> ShownReply:
        """`reply`, shown by the cell that runs now."""
        made = cls(**{field.name: getattr(reply, field.name) for field in fields(reply)})
        object.__setattr__(made, "_shown_by", (session, session.cell_number()))
        return made

    def _ipython_display_(self) -> None:
        session, cell = getattr(self, "_shown_by", (None, 0))
        if session is None or session.cell_number() != cell:
            raise NotImplementedError  # IPython then shows it as it would without this method
