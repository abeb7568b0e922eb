"""What evaluation must leave alone."""

import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch


@pytest.fixture
def global_rng() -> Callable[[], bytes]:
    """A look at every global random generator of the host, after a seed that no library would set."""
    torch.manual_seed(20_011)

    def look() -> bytes:
        return pickle.dumps((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))  # noqa: NPY002

    return look
