"""Evaluators, and the splits that they score against."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cifargan.build.parts import build_data, build_evaluator, build_extractor, splits_of
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.evaluator import NoEvaluator
from cifargan.evaluation.extractors import automatic
from cifargan.images import save_png

Compose = Callable[..., DictConfig]


def test_no_evaluator(composed: Compose, digits: Callable[[DictConfig], ImageSet]) -> None:
    config = composed("data=digits")
    reference = digits(config.data)
    evaluator = build_evaluator(config.evaluator, images=reference, data=config.data, device=torch.device("cpu"))
    assert isinstance(evaluator, NoEvaluator)


def test_splits_are_those_of_the_data_and_else_what_was_loaded(composed: Compose, tmp_path: Path) -> None:
    data = composed("data=digits").data
    images = build_data(data)
    assert [(one.splits, len(one)) for one in splits_of(data, images)] == [(("train",), 1498), (("test",), 299)]
    assert splits_of(data, images)[0] is images
    assert [one.splits for one in splits_of(data, images, ["test"])] == [("test",)]
    for i in range(4):
        path = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(torch.full((3, 8, 8), i, dtype=torch.uint8), path)
    folder = composed(
        "data=folder", f"data.root={tmp_path / 'pictures'}", "data.image_size=8", f"+data.cache={tmp_path / 'cache'}"
    ).data
    loaded = build_data(folder)
    assert splits_of(folder, loaded) == [loaded]


def test_auto_takes_inception_and_else_says_what_it_takes(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    node = composed("data=digits", "evaluator=auto", f"evaluator.weights={tmp_path / 'none.pth'}").evaluator
    extractor = build_extractor(node, device=torch.device("cpu"))
    assert extractor.distance_name == "fd_lite0_64"
    assert "scoring with EfficientNet-Lite0 instead; its distances are no FID" in caplog.text
    assert "none.pth" in caplog.text
    sentinel = object()
    monkeypatch.setattr(automatic, "Inception", lambda **settings: sentinel)
    assert build_extractor(node, device=torch.device("cpu")) is sentinel

    def cannot(**settings: object) -> None:
        raise UserError("it cannot be had")

    monkeypatch.setattr(automatic, "Inception", cannot)
    monkeypatch.setattr(automatic, "EfficientNetLite0", cannot)
    with pytest.raises(UserError, match="evaluator=auto: it cannot be had; and it cannot be had"):
        build_extractor(node, device=torch.device("cpu"))
