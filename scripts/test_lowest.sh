#!/usr/bin/env bash
# The tests with the oldest versions that pyproject.toml allows, in an environment of their own, .venv-lowest (some 6 GB).
# Arguments go to pytest: scripts/test_lowest.sh -m "not slow"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python="$(find_python)"
[ -x .venv-lowest/bin/python ] || "$python" -m venv .venv-lowest
.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
# The oldest of what is named here; the newest of what those need in turn.
.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
export PATH="$PWD/.venv-lowest/bin:$PATH" OMP_NUM_THREADS=1
# Old libraries use what new ones warn of.
python -m pytest -n 2 -o filterwarnings=ignore "$@"
