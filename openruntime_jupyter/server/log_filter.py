"""Log filter for exhausted file descriptors."""

from __future__ import annotations

import errno
import logging
import time

REPEAT_SECONDS = 60.0
MESSAGE = "No file descriptors are left, so that connections wait: close clients, or raise the limit (`ulimit -n`)"


class DescriptorFilter(logging.Filter):
    """Filter that reports exhausted descriptors once a minute. The event loop reports each failed attempt, a megabyte a second."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -REPEAT_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a repeated report, and shorten the first one."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            return True
        now = time.monotonic()
        if now - self._last < REPEAT_SECONDS:
            return False
        self._last = now
        record.msg, record.args, record.exc_info = MESSAGE, (), None
        return True


def limit_descriptor_reports() -> None:
    """Install the filter for the event loop of this process."""
    log = logging.getLogger("asyncio")
    if not any(isinstance(each, DescriptorFilter) for each in log.filters):
        log.addFilter(DescriptorFilter())
