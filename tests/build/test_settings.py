"""Loggers that are an extra."""

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from cifargan.build.check import check
from cifargan.errors import UserError

Compose = Callable[..., DictConfig]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_told_with_its_extra(
    name: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"trainer.loggers=[csv,{name}]")
    monkeypatch.setattr("cifargan.build.settings.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"^trainer\.loggers=\[csv,{name}\]: .*pip install 'cifargan\[{name}\]'"):
        check(config)
    monkeypatch.setattr("cifargan.build.settings.find_spec", lambda _: "found")
    check(config)
