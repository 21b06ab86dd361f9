# shellcheck shell=bash
# The two steps of the cross-dataset protocol: training on all classes of a source, tests on other data sets.

# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# shellcheck disable=SC2034 # read by config_of
PROTOCOL=xd
SOURCE=${SOURCE:-imagenet}
DATASETS=${DATASETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 \
    imagenetv2 imagenet_sketch imagenet_a imagenet_r}

# shellcheck disable=SC2034 # read by the scripts
SOURCE_HELP="  --source NAMES      data sets to train on                       (imagenet)"
# shellcheck disable=SC2034 # read by the scripts
DATASETS_HELP="  --datasets NAMES    data sets to test on                        (the paper's ten others and four
                                                                  variants of ImageNet)"

# All functions take trainer, source, seed, shots.
train_dir() {
    echo "$OUTPUT/$2/$(method_of "$1")/$(config_name "$1")_$4shots/seed$3"
}

test_dir() {
    local folder=evaluation
    [ "$2" = imagenet ] || folder=evaluation_$2 # runs from another source must not share a folder
    echo "$OUTPUT/$folder/$(method_of "$1")/$(config_name "$1")_$4shots/seed$3"
}

train_done() {
    results_done "$(train_dir "$@")" --datasets "$2"
}

train() {
    train_py "$(train_dir "$@")" "$@" -- TRAIN.CHECKPOINT_FREQ 1
}

test_done() {
    # shellcheck disable=SC2086 # a list
    results_done "$(test_dir "$@")" --model-dir "$(train_dir "$@")" --datasets $DATASETS
}

# Test on all data sets that have no result yet, in one process.
test_others() {
    local dir missing
    dir=$(test_dir "$@")
    if ! train_done "$@"; then
        REASON="its training has not finished, run train.sh or all.sh first ($(train_dir "$@"))"
        return 1
    fi
    # shellcheck disable=SC2086 # lists
    missing=$("$PYTHON" -m kdpl.results "done" "$dir" --model-dir "$(train_dir "$@")" --datasets $DATASETS)
    # shellcheck disable=SC2086
    train_py "$dir" "$1" "${missing%%$'\n'*}" "$3" "$4" \
        --eval-only --model-dir "$(train_dir "$@")" --eval-datasets $missing
}

both_done() {
    train_done "$@" && test_done "$@"
}

both() {
    train_done "$@" || train "$@" || return
    test_done "$@" || test_others "$@"
}

# Add a run for every trainer, source, number of shots and seed: $1 tells whether it is done, $2 does it.
add_all_runs() {
    local trainer source shots seed
    for trainer in $TRAINER; do
        for source in $SOURCE; do
            for shots in $SHOTS; do
                for seed in $SEEDS; do
                    add_run "$(method_of "$trainer") from $source, $shots shots, seed $seed" "$1" "$2" \
                        "$trainer" "$source" "$seed" "$shots"
                done
            done
        done
    done
}
