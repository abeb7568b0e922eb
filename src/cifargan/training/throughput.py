"""How fast a run is, with evaluations left out of it."""

import time


class Throughput:
    """Counts steps a second from lap to lap."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """The run begins, or goes on, at `step`."""
        self.started = time.monotonic()
        self.paused = 0.0  # seconds that were no training
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin the lap anew at `step`, to which the run went back."""
        self.lap_began, self.lap_step = time.monotonic(), step

    def lap(self, step: int) -> float:
        """Steps a second since the last lap; the next one begins."""
        seconds, steps = time.monotonic() - self.lap_began, step - self.lap_step
        self.restart(step)
        return steps / max(seconds, 1e-9)

    def pause(self, seconds: float) -> None:
        """Leave the last `seconds` out of the lap."""
        self.paused += seconds
        self.lap_began += seconds

    @property
    def paused_share(self) -> float:
        """The share of the time since the start that was no training."""
        return self.paused / max(time.monotonic() - self.started, 1e-9)
