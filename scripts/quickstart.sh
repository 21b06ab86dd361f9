#!/usr/bin/env bash
# From a fresh clone to a result: install, then what a classifier of fixed names gains from photos without labels (KDPL_KernelHead,
# KDPL_TaskRes) and with them (KernelHead, TaskRes), and prompts for new names (KDPL_CoOp, KDPL_VPT, beside CoOp and VPT), with the student's sentence and the teacher,
# on the embedded benchmark. A few minutes on two cores; what is done is not done again.
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
quietly() {
    "$PYTHON" -m kdpl.sweep "$@" --cfg emoji --output "$OUTPUT" --jobs "$JOBS" >"$OUTPUT/zeroshot.log" 2>&1 ||
        { cat "$OUTPUT/zeroshot.log"; exit 1; }
}
quietly --protocol few_shot --seeds 1 --trainer ZeroshotCLIP ZeroshotTeacher --datasets emoji_photos_meals
quietly --protocol few_shot --seeds 1 2 3 --trainer KDPL_KernelHead KernelHead --datasets emoji_photos_meals
"$PYTHON" -m kdpl.sweep configs/sweeps/emoji_photos.yaml --output "$OUTPUT" --jobs "$JOBS"
quietly --protocol base2new --seeds 1 --trainer ZeroshotCLIP ZeroshotTeacher --datasets emoji_meals emoji_leisure
"$PYTHON" -m kdpl.sweep configs/sweeps/emoji.yaml --output "$OUTPUT" --jobs "$JOBS"
"$PYTHON" scripts/quickstart_table.py "$OUTPUT"
