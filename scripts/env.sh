# shellcheck shell=bash
# Sourced by the scripts of a newcomer: sets PYTHON to the active virtual environment's, or to that of .venv, made if missing.
# Idle threads of several processes must not spin on the few cores there are.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-0}"
if [ -z "${PYTHON:-}" ]; then
    if [ -n "${VIRTUAL_ENV:-}" ] || [ -n "${CONDA_PREFIX:-}" ]; then
        PYTHON=python
    else
        [ -x .venv/bin/python ] || python3 -m venv .venv
        PYTHON="$PWD/.venv/bin/python"
    fi
fi
export PYTHON
