"""TensorBoard's events: a writer whose file is read after all those before it, and one that writes nothing."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

# TensorBoard's name for a file of events, which begins with the second in which it was made.
FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


class EventWriter(SummaryWriter):
    """Writes a new file of events, which takes the place of what older files say from `purge_step` on.

    TensorBoard reads a run's files in the order of their names: the second in which each was made, then host and process.
    Of two made within a second the newer may be read first, and the older one's steps would stand. So a second that
    already has a file is waited out.

    Args:
        directory: the run's folder.
        purge_step: the first step that older files have no say in.
    """

    def __init__(self, directory: str, *, purge_step: int) -> None:
        _wait_out(_newest_second(Path(directory)))
        super().__init__(directory, purge_step=purge_step)


class NoEvents:
    """What TensorBoard's writer is where there is to be none: it takes everything and writes nothing.

    Args:
        directory: as of `EventWriter`.
        purge_step: as of `EventWriter`.
    """

    def __init__(self, directory: str, *, purge_step: int) -> None: ...

    def _take(self, *_: Any, **__: Any) -> None: ...

    add_scalar = add_text = add_image = add_hparams = flush = close = _take


Events = Callable[..., EventWriter | NoEvents]


def _newest_second(directory: Path) -> int:
    """The second of the newest file of events, since the epoch; 0 if there is none."""
    found = (FILE.match(path.name) for path in directory.glob("events.out.tfevents.*"))
    return max((int(match[1]) for match in found if match), default=0)


def _wait_out(second: int) -> None:
    """Return when `second` is over; at once if it lies in the future, as only another machine's clock can put it."""
    while int(now := time.time()) == second:
        time.sleep(second + 1 - now)
