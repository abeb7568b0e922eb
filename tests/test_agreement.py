"""Processes that come to the same decisions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cifargan import parallel
from cifargan.agreement import (
    Request,
    gathered,
    is_known_to_all,
    is_told,
    leads,
    on_first,
    one_before_others,
    together,
)
from cifargan.errors import UserError

InProcesses = Callable[..., list[Any]]


def own_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def decided() -> list[Any]:
    return [on_first(lambda: (own_rank(), parallel.world_size())), gathered(own_rank()), leads()]


def test_the_first_decides_by_itself_for_all(in_processes: InProcesses) -> None:
    assert decided() == [(0, 1), [0], True]
    assert in_processes(3, decided) == [[(0, 1), [0, 1, 2], True], [(0, 1), [], False], [(0, 1), [], False]]


def refused(how: str, rank: int) -> tuple[Any, ...]:
    def work() -> None:
        if own_rank() == rank:
            raise UserError(f"not with {rank}")

    try:
        {"on_first": on_first, "together": together, "one_before_others": one_before_others}[how](work)
    except UserError as error:
        return str(error), is_known_to_all(error), is_told(error)
    return ()


@pytest.mark.parametrize(("how", "rank"), [("on_first", 0), ("together", 1), ("one_before_others", 1)])
def test_an_error_of_one_is_that_of_all_and_told_by_one(in_processes: InProcesses, how: str, rank: int) -> None:
    expected = [(f"not with {rank}", True, teller != rank) for teller in range(3)]
    assert in_processes(3, refused, how, rank) == expected


def test_an_error_that_several_come_to_is_told_once(in_processes: InProcesses) -> None:
    assert in_processes(2, all_refuse) == [("0", True, False), ("1", True, True)]


def all_refuse() -> tuple[Any, ...]:
    def work() -> None:
        raise UserError(str(own_rank()))

    try:
        together(work)
    except UserError as error:
        return str(error), is_known_to_all(error), is_told(error)
    return ()


def fetched(file: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", str(own_rank()))

        def work() -> str:
            if not file.exists():
                file.write_text(f"by {own_rank()}")
            return f"{own_rank()} reads: {file.read_text()}"

        return one_before_others(work)


def test_what_one_fetches_is_there_for_the_others(in_processes: InProcesses, tmp_path: Path) -> None:
    assert in_processes(3, fetched, tmp_path / "data") == ["0 reads: by 0", "1 reads: by 0", "2 reads: by 0"]


def asked(rank: int, step: int) -> list[int | None]:
    request = Request()
    heard = [request.ask(15 if (own_rank(), now) == (rank, step) else None) for now in range(4)]
    return [*heard, request.ask_now(2 if own_rank() == 1 else None), request.ask_now(None)]


def test_a_request_is_heard_by_all_a_step_later(in_processes: InProcesses) -> None:
    assert asked(0, 2) == [None, None, 15, None, None, None]
    assert in_processes(2, asked, 1, 2) == [[None, None, None, 15, 2, None]] * 2
    # Brought up at the last step, or at the end itself: neither is lost.
    assert in_processes(2, asked, 0, 3) == [[None, None, None, None, 2, None]] * 2


def least() -> torch.Tensor:
    return parallel.smallest(torch.tensor([3, 5]) + own_rank() * torch.tensor([1, -1]))


def test_the_smallest_of_all_processes(in_processes: InProcesses) -> None:
    assert least().tolist() == [3, 5]
    assert [x.tolist() for x in in_processes(2, least)] == [[3, 4]] * 2
