"""Processes that come to the same decisions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cifargan import distributed
from cifargan.distributed import agree, gather, is_rank_zero, local_rank_zero_first, on_all_ranks, on_rank_zero
from cifargan.errors import UserError, is_met_by_all, is_reported_elsewhere

InProcesses = Callable[..., list[Any]]


def own_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def decided() -> list[Any]:
    return [on_rank_zero(lambda: (own_rank(), distributed.num_shards())), gather(own_rank()), is_rank_zero()]


def test_the_first_decides_by_itself_for_all(in_processes: InProcesses) -> None:
    assert decided() == [(0, 1), [0], True]
    assert in_processes(3, decided) == [[(0, 1), [0, 1, 2], True], [(0, 1), [], False], [(0, 1), [], False]]


def refused(how: str, rank: int) -> tuple[Any, ...]:
    def work() -> None:
        if own_rank() == rank:
            raise UserError(f"not with {rank}")

    try:
        {"on_rank_zero": on_rank_zero, "together": on_all_ranks, "local_rank_zero_first": local_rank_zero_first}[how](
            work
        )
    except UserError as error:
        return str(error), is_met_by_all(error), is_reported_elsewhere(error)
    return ()


@pytest.mark.parametrize(("how", "rank"), [("on_rank_zero", 0), ("together", 1), ("local_rank_zero_first", 1)])
def test_an_error_of_one_is_that_of_all_and_told_by_one(in_processes: InProcesses, how: str, rank: int) -> None:
    expected = [(f"not with {rank}", True, teller != rank) for teller in range(3)]
    assert in_processes(3, refused, how, rank) == expected


def test_an_error_that_several_come_to_is_told_once(in_processes: InProcesses) -> None:
    assert in_processes(2, all_refuse) == [("0", True, False), ("1", True, True)]


def all_refuse() -> tuple[Any, ...]:
    def work() -> None:
        raise UserError(str(own_rank()))

    try:
        on_all_ranks(work)
    except UserError as error:
        return str(error), is_met_by_all(error), is_reported_elsewhere(error)
    return ()


def fetched(file: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", str(own_rank()))

        def work() -> str:
            if not file.exists():
                file.write_text(f"by {own_rank()}")
            return f"{own_rank()} reads: {file.read_text()}"

        return local_rank_zero_first(work)


def test_what_one_fetches_is_there_for_the_others(in_processes: InProcesses, tmp_path: Path) -> None:
    assert in_processes(3, fetched, tmp_path / "data") == ["0 reads: by 0", "1 reads: by 0", "2 reads: by 0"]


def agreed() -> list[int | None]:
    return [agree(None), agree(15 if own_rank() == 1 else None), agree(2 + own_rank())]


def test_a_number_of_one_rank_is_that_of_all(in_processes: InProcesses) -> None:
    assert agreed() == [None, None, 2]
    assert in_processes(2, agreed) == [[None, 15, 3]] * 2


def least() -> torch.Tensor:
    return distributed.all_reduce_min(torch.tensor([3, 5]) + own_rank() * torch.tensor([1, -1]))


def test_the_smallest_of_all_processes(in_processes: InProcesses) -> None:
    assert least().tolist() == [3, 5]
    assert [x.tolist() for x in in_processes(2, least)] == [[3, 4]] * 2
