#!/usr/bin/env bash
# Feed every loader damaged and hostile content for a while: bash scripts/fuzz.sh --minutes 10 (see --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
"$PYTHON" -c 'import hypothesis, kdpl' 2>/dev/null || "$PYTHON" -m pip install --quiet --editable '.[test]'
exec "$PYTHON" tests/faults/fuzz.py "$@"
