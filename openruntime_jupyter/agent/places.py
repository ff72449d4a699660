"""Places in which jobs run on a host: the caller's own where the host shares its files, else private folders of the session."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

from openruntime_jupyter.engines.protocol import Job


class JobPlaces:
    """Working folders of jobs, in a private `folder`. With `shares_files`, the runtime's paths may exist on this host."""

    def __init__(self, folder: Path, shares_files: bool) -> None:
        self._folder = folder
        self._shares_files = shares_files
        self._number = 0
        self._empty: list[str] = []
        """Folders of ended jobs that left nothing. To delete and make them again would take longer than an empty job."""

    def adapt(self, job: Job) -> None:
        """Let a job use the caller's interpreter and folder where this host has both, else its own. Raises `OSError`."""
        environment = job.environment
        if not job.private:
            if not self._shares_files:
                job.interpreter = None
            return
        if self._shares_files and (environment.directory is None or Path(environment.directory).is_dir()):
            if job.interpreter is not None and not os.access(job.interpreter, os.X_OK):
                job.interpreter = None
            return
        job.interpreter = None
        if environment.directory is not None or environment.path is not None:
            job.environment = dataclasses.replace(environment, directory=None, path=None)
        job.folder = self._empty.pop() if self._empty and job.session is None else self._made(job)

    def _made(self, job: Job) -> str:
        """Make a folder for a job, or return that of its session."""
        self._number += 1
        folder = self._folder / (job.session.id if job.session is not None else str(self._number))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)

    async def leave(self, job: Job) -> None:
        """Remove what an adapted job has left in its private folder. Folders of sessions stay until the runtime leaves."""
        if job.folder is None or job.session is not None:
            return
        try:
            left = bool(os.listdir(job.folder))
        except OSError:  # the job removed it, or its permissions
            left = True
        if not left:
            self._empty.append(job.folder)
        else:
            await asyncio.to_thread(shutil.rmtree, job.folder, ignore_errors=True)
