#!/usr/bin/env bash
# From a fresh clone to a result: install, then compare prompts learned without labels (KDPL_CoOp) with the zero-shot student,
# the zero-shot teacher and supervised CoOp, on the embedded benchmark. A few minutes on two cores; what is done is not done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

OUTPUT=${OUTPUT:-output/quickstart}
DATASETS=${DATASETS:-emoji_meals emoji_leisure}
SEEDS=${SEEDS:-1 2 3}
JOBS=${JOBS:-2}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if ! "$PYTHON" -m pip show --quiet kdpl 2>/dev/null; then
    echo "Installing KDPL and what it needs"
    "$PYTHON" -m pip install --quiet --editable .
fi

# A zero-shot CLIP on the base and on the new classes: row of the table, trainer, template.
zeroshot() {
    local row=$1 trainer=$2 template=$3 dataset classes dir
    for dataset in $DATASETS; do
        for classes in base new; do
            dir=$OUTPUT/zeroshot/$row/$dataset/$classes
            "$PYTHON" -m kdpl.results "done" "$dir" --classes "$classes" --datasets "$dataset" >/dev/null 2>&1 && continue
            mkdir -p "$dir"
            echo "$row on the $classes classes of $dataset"
            "$PYTHON" train.py --eval-only --trainer "$trainer" --seed 1 --output-dir "$dir" \
                --dataset-config-file "configs/datasets/$dataset.yaml" --config-file configs/trainers/KDPL_CoOp/emoji.yaml \
                DATASET.SUBSAMPLE_CLASSES "$classes" DATASET.TEMPLATE "$template" >"$dir/console.txt" 2>&1 ||
                { cat "$dir/console.txt"; exit 1; }
        done
    done
}

zeroshot photo ZeroshotCLIP "a photo of a {}."
zeroshot icon ZeroshotCLIP "an icon of a {}."
zeroshot teacher ZeroshotTeacher "a photo of a {}."

# shellcheck disable=SC2086 # lists of names
bash scripts/base2new/all.sh --trainer KDPL_CoOp CoOp --cfg emoji --datasets $DATASETS --seeds $SEEDS --jobs "$JOBS" \
    --output "$OUTPUT" --python "$PYTHON"

# shellcheck disable=SC2086
"$PYTHON" scripts/quickstart_table.py "$OUTPUT" --datasets $DATASETS --seeds $SEEDS
