# shellcheck shell=bash disable=SC2086 # lists of names and numbers
# Sourced by the scripts of base2new/ and xd/, which say which they are (KIND), on which data sets and with which SCRIPT_FLAGS.

DATA=${DATA:-}
TRAINER=${TRAINER:-KDPL_CoOp}
CFG=${CFG:-vit_b32} # configs/trainers/TRAINER/CFG.yaml, or the one there that begins with CFG
SHOTS=${SHOTS:-16}
SEEDS=${SEEDS:-1 2 3}
CLASS_AGNOSTIC=${CLASS_AGNOSTIC:-0}
JOBS=${JOBS:-1} # runs at once
PYTHON=${PYTHON:-python}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUTPUT=${OUTPUT:-$ROOT/output}

command -v "$PYTHON" >/dev/null || {
    echo "error: There is no command '$PYTHON': activate the environment, or set PYTHON." >&2
    exit 2
}

export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m kdpl.sweep --protocol "$KIND" $SCRIPT_FLAGS \
    --trainer $TRAINER --cfg "$CFG" --shots $SHOTS --seeds $SEEDS --datasets $DATASETS --class-agnostic "$CLASS_AGNOSTIC" \
    --data "$DATA" --output "$OUTPUT" --extra="${EXTRA:-}" --jobs "$JOBS" "$@"
