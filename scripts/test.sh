#!/usr/bin/env bash
# Install the test extra, then check the style and run the suite. Makes a virtual environment in .venv unless one is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
"$PYTHON" -m pip install --quiet --editable '.[test]'
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
