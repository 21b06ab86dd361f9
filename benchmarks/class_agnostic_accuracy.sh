#!/usr/bin/env bash
# Class-aware against class-agnostic KDPL on the embedded benchmark: base and new classes, by the base-to-new sweep.
set -u
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export TRAINER=${TRAINER:-KDPL_CoOp KDPL_CoCoOp KDPL_VPT KDPL_MaPLe KDPL_PromptSRC}
export DATASETS=${DATASETS:-emoji_meals} SEEDS=${SEEDS:-1} SHOTS=${SHOTS:-16} CFG=emoji
export OUTPUT=${OUTPUT:-$ROOT/output/class_agnostic} PYTHON=${PYTHON:-python}
# As many names as a data set of the benchmark has classes; the models know no word beyond the benchmark's.
VOCABULARY=(TRAINER.KDPL.VOCABULARY "$ROOT/datasets/embedded/vocabulary.txt" TRAINER.KDPL.K_MAX "${K_MAX:-100}")

if [ $# -gt 0 ]; then
    echo "Usage: benchmarks/class_agnostic_accuracy.sh"
    echo "Environment: TRAINER, DATASETS (emoji_*), SEEDS, SHOTS, K_MAX, OUTPUT, FORMAT, PYTHON, JOBS; see scripts/base2new/all.sh --help"
    exit 2
fi

status=0
TRAINER="ZeroshotCLIP ZeroshotTeacher" CLASS_AGNOSTIC=0 "$ROOT/scripts/base2new/all.sh" || status=1
CLASS_AGNOSTIC=0 "$ROOT/scripts/base2new/all.sh" || status=1
CLASS_AGNOSTIC=1 "$ROOT/scripts/base2new/all.sh" -- "${VOCABULARY[@]}" || status=1
"$PYTHON" -m kdpl.report --format "${FORMAT:-terminal}" "$OUTPUT" || status=1
exit $status
