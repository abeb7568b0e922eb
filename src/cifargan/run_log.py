"""`train.log`: what a run said, beside what it made."""

import logging
import sys
import traceback
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Self

from cifargan.explain import explain


class RunLog(MemoryHandler):
    """Holds back what is logged until there is a run that it belongs to, so that a failed start writes nothing.

    Args:
        path: the file; made by the first line, appended to if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self.file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        super().__init__(sys.maxsize, flushLevel=sys.maxsize, target=self.file, flushOnClose=False)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        self.close()
        self.file.close()

    def begin(self) -> None:
        """Write what was held back, and from now on every line at once."""
        self.flush()
        self.capacity = 1

    def error(self, error: Exception) -> None:
        """Note how the run failed; the terminal hears of it elsewhere."""
        message = explain(error) or "".join(traceback.format_exception(error)).rstrip()
        self.handle(logging.makeLogRecord({"levelno": logging.ERROR, "levelname": "ERROR", "msg": message}))
