"""The notebook docs/tour.ipynb runs from top to bottom, trains its own network, and draws."""

import base64
import copy
import io
import os
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def tour() -> nbformat.NotebookNode:
    notebook: nbformat.NotebookNode = nbformat.read(TOUR, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def test_it_is_valid_and_kept_without_outputs(tour: nbformat.NotebookNode) -> None:
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_it_runs_and_draws(tour: nbformat.NotebookNode, tmp_path: Path) -> None:
    run = copy.deepcopy(tour)
    # Its own run is made in a temporary folder, and Jupyter's files stay here too.
    places = {"TMPDIR": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython"), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    with patch.dict(os.environ, {**places, "OMP_NUM_THREADS": "1"}):
        NotebookClient(run, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    data = [output.data for cell in run.cells for output in cell.get("outputs", []) if "data" in output]
    pictures = [Image.open(io.BytesIO(base64.b64decode(one["image/png"]))) for one in data if "image/png" in one]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture.width > 300
        assert np.asarray(picture).std() > 30  # levels of 256: no grey field
    text = "".join(output.get("text", "") for cell in run.cells for output in cell.get("outputs", []))
    # Over the images of one class, by the batch-norm statistics of training.
    deviations = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("truncation ")]
    assert len(deviations) == 4
    assert deviations == sorted(deviations, reverse=True)
    assert list(tmp_path.glob("*/digits/checkpoints/*.safetensors"))
