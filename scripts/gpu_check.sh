#!/usr/bin/env bash
# Check and time KDPL on one GPU in under eight minutes, without any download of weights or data: bash scripts/gpu_check.sh
# Its JSON, gpu_check.json, says what was checked, measured and failed; --help lists the flags. The Python is $PYTHON, else
# python3 if it has PyTorch, else that of .venv. Missing packages are installed from the package index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ] && python3 -c 'import torch' 2>/dev/null; then
    PYTHON=python3
fi
# shellcheck source=scripts/env.sh
source scripts/env.sh
needed="clip onnx onnxruntime open_clip pytest safetensors tabulate tensorboard timm torch torchvision yacs"
# shellcheck disable=SC2086 # a list of names
if ! "$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))' $needed; then
    echo "Installing what KDPL and its tests need"
    "$PYTHON" -m pip install --quiet --editable '.[onnx]' 'pytest>=8' 'pytest-xdist>=3.5' 'onnxruntime>=1.17'
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" scripts/gpu_check.py "$@"
