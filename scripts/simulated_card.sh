#!/usr/bin/env bash
# Run the suite, or some of it, on a simulated CUDA card: bash scripts/simulated_card.sh [tests/distill/test_views.py ...]
# tests/simulated_card says what it can see and what not. The first run builds it with the machine's C++ compiler.
# `bash scripts/simulated_card.sh --program train.py ...` runs any Python program on it, and what that starts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
export PYTHONPATH="$PWD/tests/simulated_card/site${PYTHONPATH:+:$PYTHONPATH}"
export CUBLAS_WORKSPACE_CONFIG="${CUBLAS_WORKSPACE_CONFIG:-:4096:8}" # of deterministic runs, as on a real card
if [ "${1:-}" = --program ]; then
    shift
    exec "$PYTHON" "$@"
fi
exec "$PYTHON" -m pytest "$@"
