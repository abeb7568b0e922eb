"""A round of the gan as one CUDA graph: the host starts one thing a round, in place of thousands of kernels.

Unlike torch's own graph trees, one recording holds both networks' passes, the optimisers and the average. It is trusted
only after it was seen to do what the loop does that it was recorded from.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cifargan.training.rng import restore_rng, rng_state

log = logging.getLogger(__name__)

WARM_UP = 3  # rounds before the recording: lazy initialisations and the choice of algorithms must be over by then
TOLERANCE = 0.02  # relative: reductions in another order, in bf16, differ by less; a round with other images by more
RESTLESS = 4.0  # a recording may differ by this many times what two plays of the same round differ by

_Snapshot: TypeAlias = tuple[list[Tensor], dict[str, Tensor], list[Tensor]]


class CapturedStep:
    """Plays rounds: the first few as they are, then from a recording, if that agrees with them.

    Args:
        play: one round; returns 0-dim tensors on the device.
        tensors: gives all that a round changes in place.
        generators: random generators that a round draws from, beside the device's default one.
        device: a CUDA device.
    """

    def __init__(
        self,
        play: Callable[[], dict[str, Tensor]],
        *,
        tensors: Callable[[], list[Tensor]],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.play = play
        self.tensors = tensors
        self.own_generators = list(generators)
        self.device = device
        self.rounds = 0
        self.chosen: Callable[[], dict[str, Tensor]] | None = None

    def __call__(self) -> dict[str, Tensor]:
        """One round."""
        if self.chosen is None and self.rounds == WARM_UP:
            self.chosen = self._choose()
        self.rounds += 1
        return (self.chosen or self._play_apart)()

    def record(self) -> Callable[[], dict[str, Tensor]]:
        """Record a round without playing it; returns what replays it, into the same tensors each time."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.own_generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            metrics = self.play()

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return metrics

        return replay

    def _choose(self) -> Callable[[], dict[str, Tensor]]:
        """The recording, or the round as it is where it cannot be recorded or comes out differently."""
        start = self._snapshot()
        try:
            replay = self.record()
            differing = self._differing(replay, start)
        except RuntimeError as error:
            reason = (str(error) or repr(error)).splitlines()[0]
        else:
            if not differing:
                return replay
            reason = f"replayed, these came out differently: {', '.join(differing)}"
        finally:
            # Neither trial has happened, nor half of one that an error ended.
            self._restore(start)
        log.warning("trainer.graph: rounds are not replayed from a CUDA graph here (%s); training goes on", reason)
        return self.play

    def _play_apart(self) -> dict[str, Tensor]:
        """A round on a stream of its own, as what precedes a recording must be."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            metrics = self.play()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return metrics

    def _differing(self, replay: Callable[[], dict[str, Tensor]], start: _Snapshot) -> list[str]:
        """Play the coming round both ways and name what differs. Waits for the device."""
        expected = {name: value.clone() for name, value in self.play().items()}
        after_play = self._random_states()
        self._restore(start)
        # Kernels that add in no fixed order never give the same figure twice, and updates in a row make that larger.
        again = {name: value.clone() for name, value in self.play().items()}
        self._restore(start)
        actual = replay()
        differing = [
            name
            for name, value in expected.items()
            if not (actual[name] - value).abs()
            <= TOLERANCE * (1 + value.abs()) + RESTLESS * (again[name] - value).abs()
        ]
        if not all(map(torch.equal, self._random_states(), after_play)):
            differing.append("random numbers")
        return differing

    def _random_states(self) -> list[Tensor]:
        return [*rng_state(self.device).values(), *(generator.get_state() for generator in self.own_generators)]

    def _snapshot(self) -> _Snapshot:
        own = [generator.get_state() for generator in self.own_generators]
        return [tensor.clone() for tensor in self.tensors()], rng_state(self.device), own

    @torch.no_grad()
    def _restore(self, snapshot: _Snapshot) -> None:
        tensors, default, own = snapshot
        for tensor, before in zip(self.tensors(), tensors, strict=True):
            tensor.copy_(before)
        restore_rng(default, self.device)
        for generator, state in zip(self.own_generators, own, strict=True):
            generator.set_state(state)
