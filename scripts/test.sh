#!/usr/bin/env bash
# The whole suite, as CI runs it: style, types, import contract, tests. Arguments go to pytest: scripts/test.sh -m "not slow"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_environment dev
export PATH="$PWD/.venv/bin:$PATH"
# Tests run side by side; each would otherwise start a thread for every core.
export OMP_NUM_THREADS=1
pre-commit run --all-files --show-diff-on-failure
python -m pytest -n 2 "$@"
