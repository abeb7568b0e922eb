"""Checkpoints: complete or absent; a damaged one is reported and skipped."""

import resource
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cifargan import tensor_file
from cifargan.errors import UserError
from cifargan.runs.checkpoint import FORMAT, KIND, CheckpointStore, load
from cifargan.tensor_file import DamagedError

STATE = {"step": 7, "weights": {"a": torch.arange(6.0), "n": torch.tensor(3)}, "config": {"lr": 1e-3, "on": [1, "x"]}}


def names(folder: Path) -> list[str]:
    return sorted(path.name.replace(".safetensors", "") for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A block in which no file can get larger than `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_keeps_the_earlier_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(STATE, 1)
    with largest_file(100_000), pytest.raises(UserError, match=r"step_000000002.*File too large.*untouched") as error:
        store.save({"big": torch.zeros(100_000)}, 2)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["step_000000001"]
    assert load(store.find("last"))["step"] == 7
    with pytest.raises(TypeError, match=r"part/0: a checkpoint holds .* not set"):
        store.save({"part": [{1}]}, 2)
    assert names(tmp_path) == ["step_000000001"]
    assert store.save(STATE, 2).is_file()


def test_a_state_of_any_shape_is_kept(tmp_path: Path, differences: Any) -> None:
    weight = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).weight
    optimizer = torch.optim.Adam([weight], lr=0.1)
    torch.autograd.backward(weight.sum())
    optimizer.step()
    state = {
        **STATE,
        "optimizer": optimizer.state_dict(),
        "ordered": OrderedDict(b=torch.ones(2), a=torch.zeros(0)),
        "nested": {"deep": [{"list": [torch.tensor(1.5), None, True, -1, 1e300, float("inf"), ""]}]},
        "keys": {1: "one", "1": torch.ones(1), -2: {"__tensor__": "x"}, "a/b": torch.zeros(1)},
        "keys/a": {"b": torch.ones(1)},
        "seed": 2**64 - 1,
    }
    found = load(CheckpointStore(tmp_path).save(state, 7))
    found["optimizer"]["param_groups"][0]["betas"] = tuple(found["optimizer"]["param_groups"][0]["betas"])
    assert differences(found, state) == []
    assert list(found["ordered"]) == ["b", "a"]


CHECKPOINT = {"kind": KIND, "format": FORMAT}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"kind": "generator"}, "is not a checkpoint"),
        (
            {**CHECKPOINT, "format": FORMAT + 1, "state": {}},
            f"checkpoint format {FORMAT + 1}; .* reads format {FORMAT}",
        ),
        ({**CHECKPOINT, "format": "\x1b[2J", "state": {}}, r"checkpoint format \\x1b\[2J; "),
        (CHECKPOINT, "is damaged"),
        ({**CHECKPOINT, "state": []}, "is damaged"),
        ({**CHECKPOINT, "state": {"a": {"__tensor__": "b"}}}, "is damaged"),
        ({**CHECKPOINT, "state": {"a": {"__tensor__": ["a"]}}}, "is damaged"),
        ({**CHECKPOINT, "state": {"a": {"__items__": [[[], 1]]}}}, "is damaged"),
        ({**CHECKPOINT, "state": {"a": {"__items__": 3}}}, "is damaged"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    path = tmp_path / "sent.safetensors"
    path.write_bytes(tensor_file.to_bytes({"a": torch.ones(1)}, about))
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(error.value).isprintable()


def test_the_newest_complete_one_is_used_and_damaged_ones_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    assert store.newest_whole() is None
    paths = [store.save({**STATE, "step": step}, step) for step in (10, 20, 30)]
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    paths[2].write_bytes(b"")
    found = store.newest_whole()
    assert found is not None
    assert (found[0], found[1]["step"]) == (paths[0], 10)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"{paths[2]} is damaged")
    assert first.endswith("there is step_000000020.safetensors beside it")
    assert second.startswith(f"{paths[1]} is damaged: its checksum does not match")
    assert second.endswith("there is step_000000010.safetensors beside it")
    assert store.find("last") == paths[0]
    assert store.find("30") == paths[2]  # a requested step is not replaced silently
    paths[0].write_bytes(content[:100])
    assert store.newest_whole() is None
    with pytest.raises(DamagedError, match=r"step_000000030.*; there is step_000000020.* beside it"):
        load(store.find("last"))


def test_files_of_a_killed_process_are_cleaned_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    for step in (10, 20, 30):
        path = store.save({**STATE, "step": step, "best": {"step": 20}}, step, best=step == 10)
    path.write_bytes(b"half")
    (tmp_path / ".step_000000040.safetensors.99.partial").write_bytes(b"half")
    found = store.newest_whole()
    assert found is not None
    store.mend(*found)
    assert names(tmp_path) == ["best", "step_000000010", "step_000000020", "step_000000030.damaged"]
    # The best of all was written, but its copy was not.
    assert (tmp_path / "best.safetensors").read_bytes() == found[0].read_bytes()
    (tmp_path / "best.safetensors").unlink()
    store.mend(*found)
    assert load(store.find("best"))["step"] == 20


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.directory.mkdir()
    (store.directory / "step_000000900.safetensors").write_bytes(b"")  # a damaged one does not count
    for step, best in ((95, False), (100, True), (105, False), (110, False), (115, False)):
        store.save({"step": step}, step, best=best)
    assert names(store.directory) == ["best", "step_000000110", "step_000000115", "step_000000900"]
    assert [load(store.find(which))["step"] for which in ("best", "last", "110")] == [100, 115, 110]


def test_an_unknown_checkpoint_is_an_error_that_lists_the_others(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for which in ("last", "best", "5"):
        with pytest.raises(UserError, match=f"no checkpoint '{which}' in .*: the run has not written any yet"):
            store.find(which)
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="there is no checkpoint at"):
            load(path)
    store.save(STATE, 5)
    store.save(STATE, 10, best=True)
    for which in ("7", "first", "", "²", "../step_000000010"):
        with pytest.raises(UserError, match=r"there are 5, 10, best$"):
            store.find(which)
