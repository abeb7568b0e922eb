# Sourced by the other scripts: makes .venv once, and again only when pyproject.toml has changed.
# Usage: ensure_environment [EXTRA]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed; name one by PYTHON=/path/to/python3" >&2
  exit 2
}

ensure_environment() {
  local extra="${1:+[$1]}" python stamp wanted
  stamp=".venv/.installed-${1:-plain}"
  wanted="$(cksum <pyproject.toml)"
  if [ -x .venv/bin/cifargan ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  python="$(find_python)"
  if [ ! -x .venv/bin/python ]; then
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  echo "Installing cifargan$extra and what it needs (some minutes, about 6 GB with CUDA) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extra"
  echo "$wanted" >"$stamp"
}
