"""The flags of `cifargan train`."""

import pytest

from cifargan.cli.options import as_arguments, split_flags
from cifargan.errors import UserError


@pytest.mark.parametrize(
    ("line", "flags", "overrides"),
    [
        ("a=1 b=2", "", "a=1 b=2"),
        ("a=1 -m b=1,2", "--multirun", "a=1 b=1,2"),
        ("a=1 --cfg job b=2", "--cfg=job", "a=1 b=2"),
        ("a=1 --cfg=job --resolve", "--cfg=job --resolve", "a=1"),
        ("a=1 -c hydra", "--cfg=hydra", "a=1"),
        ("--package trainer -c job", "--package=trainer --cfg=job", ""),
        ("a=1 --info b=2", "--info=all", "a=1 b=2"),
        ("a=1 --info=defaults", "--info=defaults", "a=1"),
        ("a=1 --config-dir mine ~b +c=-3", "--config-dir=mine", "a=1 ~b +c=-3"),
    ],
)
def test_flags_go_before_overrides(line: str, flags: str, overrides: str) -> None:
    found, rest = split_flags(line.split())
    assert (as_arguments(found), rest) == (flags.split(), overrides.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a=1 --cgf job", "--cgf: no such option; did you mean --cfg"),
        ("--batch-size=5", "--batch-size: no such option; "),
        ("--cfg jb", "--cfg jb: choose from job, hydra, all"),
        ("--cfg all -m", "-m sweeps, --cfg only shows"),
        ("--info -m", "-m sweeps, --info only shows"),
        ("--config-dir", "--config-dir: needs a value"),
        ("--resolve", "--resolve: goes with --cfg"),
    ],
)
def test_flags_that_are_refused(line: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        split_flags(line.split())
    assert str(caught.value).startswith(words)
