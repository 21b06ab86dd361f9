#!/usr/bin/env bash
# Check and time KDPL on one GPU, without any download of weights or data: bash scripts/gpu_check.sh 2>&1 | tee gpu_check.txt
# The suite's tests on the card with small CLIPs, steps at the sizes of real models, then times beside the published way. All parts
# are run; the exit status is 1 if one of them failed. Needs the packages of `pip install -e '.[test]'`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # of deterministic runs
"$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
failed=0
"$PYTHON" -m pytest -k "cuda or gpu" tests/test_golden.py tests/clip/test_precision.py tests/test_gpu.py \
    tests/training/test_determinism.py || failed=1
"$PYTHON" scripts/gpu_check.py || failed=1
for trainer in "KDPL_CoOp --batch 32" "KDPL_CoCoOp --batch 1" "KDPL_MaPLe --batch 4" "KDPL_PromptSRC --batch 4"; do
    # shellcheck disable=SC2086 # words
    "$PYTHON" benchmarks/train_step.py --device cuda --precision fp16 --teacher ViT-H/14 --views 2 --preload --reference \
        --trainer $trainer || failed=1
done
exit $failed
