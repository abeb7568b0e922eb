"""An iteration as one CUDA graph: the host starts one thing an iteration, in place of thousands of kernels.

Unlike torch's own graph trees, one graph holds both networks' passes, the optimisers and the average. It is trusted only
after it was seen to compute what the loop computes that it was captured from.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cifargan.training.state import restore_rng, rng_state

log = logging.getLogger(__name__)

WARM_UP = 3  # iterations of a kind before its capture: lazy initialisation and choice of algorithms are over by then
MAX_KINDS = 4  # kinds that are captured; those that come to it later are rare
TOLERANCE = 0.02  # relative: sums in another order, in bf16, differ by less; an iteration with other images by more
RESTLESS = 4.0  # a graph may differ by this many times what two eager runs of the same iteration differ by

Kind: TypeAlias = frozenset[str]  # of an iteration: the penalties that it takes
_Snapshot: TypeAlias = tuple[list[Tensor], dict[str, Tensor], list[Tensor]]


class CapturedSteps:
    """Runs iterations: of each kind the first few eagerly, then from a CUDA graph if that agrees with them.

    All graphs share one memory pool, since only one of them runs at a time.

    Args:
        iteration: one iteration of a kind; returns 0-dim tensors on the device.
        tensors: gives all that an iteration changes in place.
        generators: random generators that an iteration draws from, beside the device's default one.
        device: a CUDA device.
    """

    def __init__(
        self,
        iteration: Callable[[Kind], dict[str, Tensor]],
        *,
        tensors: Callable[[], list[Tensor]],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self.iteration = iteration
        self.tensors = tensors
        self.own_generators = list(generators)
        self.device = device
        self.eager_runs: dict[Kind, int] = {}
        self.chosen: dict[Kind, Callable[[], dict[str, Tensor]]] = {}
        self.replayed: set[Kind] = set()  # the kinds that are replayed from a graph
        self._pool: Any = None

    def __call__(self, kind: Kind) -> dict[str, Tensor]:
        """One iteration of a kind."""
        if kind not in self.chosen:
            runs = self.eager_runs.get(kind, 0)
            if runs < WARM_UP or len(self.chosen) == MAX_KINDS:
                self.eager_runs[kind] = runs + 1
                return self._run_on_side_stream(kind)
            self.chosen[kind] = self._choose(kind)
        return self.chosen[kind]()

    def capture(self, kind: Kind) -> Callable[[], dict[str, Tensor]]:
        """Capture an iteration without running it; returns what replays it, into the same tensors each time."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        for generator in self.own_generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            metrics = self.iteration(kind)

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return metrics

        return replay

    def _choose(self, kind: Kind) -> Callable[[], dict[str, Tensor]]:
        """The graph, or the eager iteration where it cannot be captured or comes out differently."""
        start = self._snapshot()
        eager = partial(self.iteration, kind)
        try:
            replay = self.capture(kind)
            differing = self._differing(replay, eager, start)
        except RuntimeError as error:
            reason = (str(error) or repr(error)).splitlines()[0]
        else:
            if not differing:
                self.replayed.add(kind)
                return replay
            reason = f"replayed, these came out differently: {', '.join(differing)}"
        finally:
            # The trials leave no trace, nor does one that an error ended.
            self._restore(start)
        log.warning(
            "trainer.graph: iterations are not replayed from a CUDA graph here (%s); training continues", reason
        )
        return eager

    def _run_on_side_stream(self, kind: Kind) -> dict[str, Tensor]:
        """An eager iteration on a stream of its own, as what precedes a capture must be."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            metrics = self.iteration(kind)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return metrics

    def _differing(
        self, replay: Callable[[], dict[str, Tensor]], eager: Callable[[], dict[str, Tensor]], start: _Snapshot
    ) -> list[str]:
        """Run the coming iteration both ways and name what differs. Waits for the device."""
        expected = {name: value.clone() for name, value in eager().items()}
        after = self._random_states()
        self._restore(start)
        # Kernels that add in no fixed order never give the same figure twice, and updates in a row make that larger.
        again = {name: value.clone() for name, value in eager().items()}
        self._restore(start)
        actual = replay()
        differing = [
            name
            for name, value in expected.items()
            if not (actual[name] - value).abs()
            <= TOLERANCE * (1 + value.abs()) + RESTLESS * (again[name] - value).abs()
        ]
        if not all(map(torch.equal, self._random_states(), after)):
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
