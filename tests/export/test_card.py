"""The card of an exported generator."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cifargan.errors import UserError
from cifargan.export.card import ORIGINS, scores, settings
from cifargan.registry import SOURCES
from cifargan.runs.directory import RunDirectory


def test_every_source_of_images_has_an_origin() -> None:
    assert set(ORIGINS) == set(SOURCES)


def test_scores_are_those_of_the_weights_alone(tmp_path: Path) -> None:
    own = {"metric": "fid", "value": 9.5, "step": 3, "weights": "ema", "class_name": None, "truncation": 0.5}
    others = [own | {"step": 2}, own | {"weights": "raw"}, own | {"class_name": "cat"}]
    records = [{**record, "subject": "/home/somebody/run"} for record in (own, *others)]
    (tmp_path / "evaluation.json").write_text(json.dumps({"records": records}))
    found = scores(RunDirectory(tmp_path), step=3, weights="ema")
    assert found == [{"metric": "fid", "value": 9.5, "truncation": 0.5}]
    assert scores(RunDirectory(tmp_path / "nowhere"), step=3, weights="ema") == []


def test_the_settings_on_the_card_hold_no_local_path() -> None:
    config = {
        "data": {"name": "folder", "root": "/home/x", "cache": "/home/y", "image_size": 16},
        "model": {"a": 1},
        "loss": {"b": 2},
        "optimizer": {},
        "trainer": {"d_steps": 2, "ema": {"decay": 0.9}, "steps": 7},
        "evaluator": {"name": "dinov2", "weights": "/home/z"},
        "output_root": "/home/w",
    }
    kept = settings(OmegaConf.create(config))
    assert "/home" not in str(kept)
    assert kept["data"] == {"name": "folder", "image_size": 16}
    assert kept["trainer"] == {"d_steps": 2, "ema": {"decay": 0.9}}
    with pytest.raises(UserError, match="does not say how it was trained"):
        settings(OmegaConf.create({"data": 3}))
