# shellcheck shell=bash
# The two steps of the base-to-new protocol: training on the base classes (and the test on them), the test on the new ones.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# shellcheck disable=SC2034 # read by config_of
PROTOCOL=base2new
DATASETS=${DATASETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 imagenet}

# shellcheck disable=SC2034 # read by the scripts
DATASETS_HELP="  --datasets NAMES    configs/datasets/NAME.yaml                  (the eleven of the paper)"

# All functions take trainer, data set, seed, shots.
run_dir() {
    echo "$OUTPUT/base2new/$1/$3/shots_$5/$(method_of "$2")/$(config_name "$2")/seed$4"
}

train_done() {
    results_done "$(run_dir train_base "$@")" --classes base --datasets "$2"
}

train() {
    train_py "$(run_dir train_base "$@")" "$@" -- DATASET.SUBSAMPLE_CLASSES base TRAIN.CHECKPOINT_FREQ 1
}

test_done() {
    local trained
    trained=$(run_dir train_base "$@")
    results_done "$(run_dir test_new "$@")" --classes new --datasets "$2" --model-dir "$trained"
}

test_new() {
    local trained
    trained=$(run_dir train_base "$@")
    if ! train_done "$@"; then
        REASON="its training has not finished, run train.sh or all.sh first ($trained)"
        return 1
    fi
    train_py "$(run_dir test_new "$@")" "$@" --eval-only --model-dir "$trained" -- DATASET.SUBSAMPLE_CLASSES new
}

both_done() {
    train_done "$@" && test_done "$@"
}

both() {
    train_done "$@" || train "$@" || return
    test_done "$@" || test_new "$@"
}

# Add a run for every trainer, data set, number of shots and seed: $1 tells whether it is done, $2 does it.
add_all_runs() {
    local trainer dataset shots seed
    for trainer in $TRAINER; do
        for dataset in $DATASETS; do
            for shots in $SHOTS; do
                for seed in $SEEDS; do
                    add_run "$(method_of "$trainer") $dataset, $shots shots, seed $seed" "$1" "$2" \
                        "$trainer" "$dataset" "$seed" "$shots"
                done
            done
        done
    done
}
