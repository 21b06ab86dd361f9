#!/usr/bin/env bash
# Cross-dataset and domain generalisation: train on all classes of the source, then test on other data sets.
# Each variable is also a flag (--seeds 1 2 3), --help lists them; KEY VALUE pairs for train.py follow after `--`.
# Finished runs are skipped and interrupted ones resumed: after any interruption, start the same command again.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DATA=${DATA:-}
OUTPUT=${OUTPUT:-$ROOT/output}
TRAINER=${TRAINER:-KDPL_CoOp}
CFG=${CFG:-vit_b32} # configs/trainers/TRAINER/CFG.yaml, or the one there that begins with CFG
SHOTS=${SHOTS:-16}
SEEDS=${SEEDS:-1 2 3}
SOURCE=${SOURCE:-imagenet}
DATASETS=${DATASETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 \
    imagenetv2 imagenet_sketch imagenet_a imagenet_r}
CLASS_AGNOSTIC=${CLASS_AGNOSTIC:-0}
JOBS=${JOBS:-1} # runs at once
PYTHON=${PYTHON:-python}

for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = --python ]; then PYTHON=${*:i+1:1}; fi
done
command -v "$PYTHON" >/dev/null || {
    echo "error: There is no command '$PYTHON': activate the environment, or set PYTHON." >&2
    exit 2
}

export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
# shellcheck disable=SC2086 # lists of names and numbers
exec "$PYTHON" -m kdpl.sweep --script "scripts/xd/$(basename "$0")" --protocol xd --source $SOURCE \
    --trainer $TRAINER --cfg "$CFG" --shots $SHOTS --seeds $SEEDS --datasets $DATASETS --class-agnostic "$CLASS_AGNOSTIC" \
    --data "$DATA" --output "$OUTPUT" --extra="${EXTRA:-}" --jobs "$JOBS" "$@"
