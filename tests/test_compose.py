"""Overrides before Hydra sees them."""

import pytest

from cifargan.compose import key_of, reject_null_groups
from cifargan.errors import UserError


def test_key_of() -> None:
    assert [key_of(text) for text in ("a.b=1", "+a.b=1=2", "++a=x", "~a", "~a=1")] == ["a.b", "a.b", "a", "a", "a"]


def test_a_group_set_to_nothing() -> None:
    reject_null_groups(["trainer.lr_decay_from=null", "model=dcgan", "+x=null"])
    with pytest.raises(UserError, match=r"^loss=null: leave it out, or choose from bce, hinge, hinge_smooth, rpgan, w"):
        reject_null_groups(["model=dcgan", "loss=null"])
