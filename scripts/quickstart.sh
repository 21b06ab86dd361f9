#!/usr/bin/env bash
# From a fresh clone to a result: install, then compare prompts learned without labels (KDPL_CoOp, KDPL_VPT) with the zero-shot
# student and teacher and with prompts learned from labels (CoOp, VPT), on the embedded benchmark. A few minutes on two cores; what
# is done is not done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

OUTPUT=${OUTPUT:-output/quickstart}
JOBS=${JOBS:-2}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if ! "$PYTHON" -m pip show --quiet kdpl 2>/dev/null; then
    echo "Installing KDPL and what it needs"
    "$PYTHON" -m pip install --quiet --editable .
fi

mkdir -p "$OUTPUT"
"$PYTHON" -m kdpl.sweep --protocol base2new --trainer ZeroshotCLIP ZeroshotTeacher --datasets emoji_meals emoji_leisure \
    --seeds 1 --cfg emoji --output "$OUTPUT" --jobs "$JOBS" >"$OUTPUT/zeroshot.log" 2>&1 || { cat "$OUTPUT/zeroshot.log"; exit 1; }
"$PYTHON" -m kdpl.sweep configs/sweeps/emoji.yaml --output "$OUTPUT" --jobs "$JOBS"
"$PYTHON" scripts/quickstart_table.py "$OUTPUT"
