#!/usr/bin/env bash
# Run the fast tests with the lowest versions of all direct dependencies that pyproject.toml allows, in its own environment.
# usage: scripts/lowest_versions.sh FOLDER [lowest-direct|highest] [arguments of pytest]; needs uv (pip install uv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder="${1:?usage: scripts/lowest_versions.sh FOLDER [lowest-direct|highest] [arguments of pytest]}"
resolution="${2:-lowest-direct}"
shift "$(($# > 1 ? 2 : 1))"
python="$folder/$resolution/bin/python"
uv venv --quiet --allow-existing --python "${PYTHON:-python3}" "$folder/$resolution"
uv pip compile --quiet --upgrade --python "$python" --resolution "$resolution" --extra test pyproject.toml -o "$folder/$resolution.txt"
uv pip sync --python "$python" "$folder/$resolution.txt"
PYTHONPATH="$PWD" exec "$python" -m pytest -m "not slow" "$@"
