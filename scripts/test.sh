#!/usr/bin/env bash
# The whole suite, as CI runs it: style, types, import contract, tests. Arguments go to pytest: scripts/test.sh -m "not slow"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_environment dev
# Tests run side by side; each would otherwise start a thread for every core.
export OMP_NUM_THREADS=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python -m pytest -n 2 "$@"
