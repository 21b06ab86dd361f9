# shellcheck shell=bash
# What the sweeps share: settings, which runs are done, running them, and the account at the end.
# A script sources this file, calls `settings "$@"`, adds its runs with `add_run` and ends with `sweep`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

SETTINGS="TRAINER DATASETS SOURCE SEEDS SHOTS CFG DATA OUTPUT CLASS_AGNOSTIC JOBS EXTRA PYTHON"
TRAINER=${TRAINER:-KDPL_CoOp}
SEEDS=${SEEDS:-1 2 3}
SHOTS=${SHOTS:-16}
CFG=${CFG:-vit_b32}
DATA=${DATA:-}
OUTPUT=${OUTPUT:-$ROOT/output}
CLASS_AGNOSTIC=${CLASS_AGNOSTIC:-0}
JOBS=${JOBS:-1}
PYTHON=${PYTHON:-python}
read -ra OPTS <<<"${EXTRA:-}"

SETTINGS_HELP="Settings, each as an argument (--seeds 1 2) or an environment variable (SEEDS=\"1 2\"):
  --trainer NAMES     trainers                                    (KDPL_CoOp)
  --seeds NUMBERS     seeds                                       (1 2 3)
  --shots NUMBERS     training images of each class               (16)
  --cfg NAME          configs/trainers/TRAINER/NAME.yaml, or the
                      one there that begins with NAME             (vit_b32)
  --data FOLDER       where the data sets are; the embedded
                      benchmark (emoji_*) needs none
  --output FOLDER     where results go                            (output, in the repository)
  --class-agnostic 1  class-agnostic KDPL; its folders end in -CA (0)
  --jobs N            runs at once                                (1)
  --python COMMAND    the Python to run                           (python)
  -- KEY VALUE ...    changes of single settings, such as OPTIM.MAX_EPOCH 5 (EXTRA)

A finished run is skipped, an interrupted one goes on from its last epoch, and one that fails is named at the end and
stops no other. So after any interruption: start the same command again."

die() {
    echo "error: $*" >&2
    exit 2
}

# Take settings from the arguments; $HELP is what the script says of itself, $SETTINGS_OF_SCRIPT its own settings.
settings() {
    local name values
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                printf '%s\n\n%s\n' "$HELP" "$SETTINGS_HELP"
                exit 0
                ;;
            --)
                shift
                OPTS+=("$@")
                break
                ;;
            --*)
                name=$(tr 'a-z-' 'A-Z_' <<<"${1#--}")
                [[ " $SETTINGS " == *" $name "* ]] || die "'$1' is not a setting. See --help."
                shift
                values=()
                while [ $# -gt 0 ] && [[ $1 != --* ]]; do
                    values+=("$1")
                    shift
                done
                [ ${#values[@]} -gt 0 ] || die "--$(tr 'A-Z_' 'a-z-' <<<"$name") needs a value. See --help."
                if [ "$name" = EXTRA ]; then
                    read -ra OPTS <<<"${values[*]}"
                else
                    printf -v "$name" %s "${values[*]}"
                fi
                ;;
            *) die "'$1' belongs to no setting. See --help." ;;
        esac
    done
    check_settings
}

check_settings() {
    local number dataset trainer
    command -v "$PYTHON" >/dev/null || die "there is no command '$PYTHON'. Activate the environment, or set PYTHON."
    for number in $SEEDS $SHOTS $JOBS; do
        [[ $number =~ ^[0-9]+$ ]] || die "'$number' in SEEDS, SHOTS or JOBS is not a number of at least 0."
    done
    [ "$JOBS" -ge 1 ] || die "JOBS is $JOBS, expected at least 1."
    case $CLASS_AGNOSTIC in
        1 | [Tt]rue) CLASS_AGNOSTIC=1 ;;
        0 | [Ff]alse | "") CLASS_AGNOSTIC=0 ;;
        *) die "CLASS_AGNOSTIC is '$CLASS_AGNOSTIC', expected 0 or 1." ;;
    esac
    for dataset in $DATASETS ${SOURCE:-}; do
        [ -f "$ROOT/configs/datasets/$dataset.yaml" ] ||
            die "there is no data set '$dataset'. There are:$(names_in "$ROOT/configs/datasets")"
    done
    for trainer in $TRAINER; do
        if [ "$CLASS_AGNOSTIC" = 1 ] && [[ $trainer != KDPL_* ]]; then
            die "CLASS_AGNOSTIC is for the KDPL trainers, not for '$trainer'."
        fi
        config_of "$trainer" >/dev/null || exit 2
    done
}

# The names of the configurations in a folder, on one line.
names_in() {
    local file
    for file in "$1"/*.yaml; do printf ' %s' "$(basename "$file" .yaml)"; done
}

# The configuration file of a trainer. The zero-shot trainers use those of CoOp and, for the teacher's name, KDPL_CoOp.
config_of() {
    local folder=$ROOT/configs/trainers/$1 file found=()
    [[ $1 == Zeroshot* ]] && folder=$ROOT/configs/trainers/CoOp
    [ "$1" = ZeroshotTeacher ] && folder=$ROOT/configs/trainers/KDPL_CoOp
    [ -d "$folder" ] || die "there is no trainer '$1' in configs/trainers. There are: $(ls -x -w 0 "$ROOT/configs/trainers")"
    if [ -f "$folder/$CFG.yaml" ]; then
        echo "$folder/$CFG.yaml"
        return
    fi
    for file in "$folder/$CFG"_*.yaml; do
        [ -f "$file" ] && [[ $file != *_cross_datasets.yaml ]] && found+=("$file")
    done
    [ ${#found[@]} -gt 0 ] || die "$1 has no configuration '$CFG'. There are:$(names_in "$folder")"
    [ ${#found[@]} -eq 1 ] || die "$1 has several configurations '${CFG}_*', choose one with CFG:$(names_in "$folder")"
    file=${found[0]}
    # PromptSRC has settings of its own for cross-dataset runs.
    if [ "${PROTOCOL:-}" = xd ] && [ -f "${file%.yaml}_cross_datasets.yaml" ]; then
        file=${file%.yaml}_cross_datasets.yaml
    fi
    echo "$file"
}

# The trainer's part of an output folder.
method_of() {
    [ "$CLASS_AGNOSTIC" = 1 ] && echo "$1-CA" || echo "$1"
}

config_name() {
    basename "$(config_of "$1")" .yaml
}

# Run train.py: output folder, trainer, data set, seed, shots, further flags, `--`, key-value pairs.
# What it prints is in the folder's console.txt; where it fails, REASON becomes the last line of that.
train_py() {
    local dir=$1 trainer=$2 dataset=$3 seed=$4 shots=$5 flags=() status=0
    shift 5
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        flags+=("$1")
        shift
    done
    [ $# -gt 0 ] && shift
    [ "$CLASS_AGNOSTIC" = 1 ] && set -- "$@" TRAINER.KDPL.CLASS_AGNOSTIC True
    mkdir -p "$dir"
    (
        # Two processes that train in one folder would overwrite each other's checkpoints.
        # A run that was just stopped may need a moment to go.
        if command -v flock >/dev/null && ! flock -w 10 9; then
            echo "error: another process is at work in $dir"
            exit 3
        fi
        # The flags of this call come first: --eval-datasets takes every word up to the next flag.
        "$PYTHON" "$ROOT/train.py" "${flags[@]}" --root "$DATA" --seed "$seed" --trainer "$trainer" \
            --dataset-config-file "$ROOT/configs/datasets/$dataset.yaml" --config-file "$(config_of "$trainer")" \
            --output-dir "$dir" DATASET.NUM_SHOTS "$shots" "$@" "${OPTS[@]}"
    ) 9>"$dir/.lock" >>"$dir/console.txt" 2>&1 || status=$?
    [ $status = 0 ] || REASON="$(grep -v '^ *$' "$dir/console.txt" | tail -n 1) (all of it: $dir/console.txt)"
    return $status
}

# Whether a run's results.json holds what is asked for (see `python -m kdpl.results done --help`).
results_done() {
    [ -f "$1/results.json" ] && "$PYTHON" -m kdpl.results "done" "$@" >/dev/null
}

RUNS=()

# Add a run: a label, a function that tells whether it is done, one that does it, and the arguments of both.
add_run() {
    RUNS+=("$(printf '%q ' "$@")")
}

# Do all runs that are not done, JOBS at once; the status is 1 if one failed.
sweep() {
    local run args todo=() failed=()
    for run in "${RUNS[@]}"; do
        eval "args=($run)"
        if "${args[1]}" "${args[@]:3}"; then
            echo "skipped ${args[0]}: finished before"
        else
            todo+=("$run")
        fi
    done

    STATE=$(mktemp -d)
    trap 'stop_runs; exit 130' INT TERM HUP
    trap 'rm -rf "$STATE"' EXIT
    local n=${#todo[@]} next=0 finished=0 spent=0 i
    PIDS=()
    set -m # every run becomes a process group, which can be stopped as a whole
    while [ $finished -lt "$n" ]; do
        while [ ${#PIDS[@]} -lt "$JOBS" ] && [ $next -lt "$n" ]; do
            run_in_background $next "${todo[next]}"
            next=$((next + 1))
        done
        wait -n 2>/dev/null || sleep 0.2 # a bash before 4.3 cannot wait for any one run
        for i in "${!PIDS[@]}"; do
            kill -0 "${PIDS[i]}" 2>/dev/null && continue
            unset "PIDS[$i]"
            finished=$((finished + 1))
            account_for "$i" "${todo[i]}"
        done
    done
    set +m

    echo "$n tried, ${#failed[@]} failed, $((${#RUNS[@]} - n)) skipped; results are in $OUTPUT"
    [ ${#failed[@]} -eq 0 ] && return 0
    echo "Failed (the same command tries these again):"
    printf '  %s\n' "${failed[@]}"
    return 1
}

run_in_background() {
    local args
    eval "args=($2)"
    (
        trap - INT TERM HUP EXIT
        began=$SECONDS status=0 REASON=
        "${args[2]}" "${args[@]:3}" || status=$?
        printf '%s %s %s\n' "$status" $((SECONDS - began)) "$REASON" >"$STATE/$1"
    ) </dev/null &
    PIDS[$1]=$!
}

# One line after a run: which, how long it took, and about how long the rest will take.
account_for() {
    local args status=137 seconds=0 reason="it was killed" left=$((n - finished)) line
    eval "args=($2)"
    [ -f "$STATE/$1" ] && read -r status seconds reason <"$STATE/$1"
    spent=$((spent + seconds))
    line="[$finished/$n] ${args[0]}: done in $(clock "$seconds")"
    [ "$status" = 0 ] || line="[$finished/$n] ${args[0]}: FAILED after $(clock "$seconds")"
    [ $left -gt 0 ] && line+=", $left left, about $(clock $((spent * left / finished / (left < JOBS ? left : JOBS))))"
    echo "$line"
    if [ "$status" != 0 ]; then
        echo "    $reason"
        failed+=("${args[0]}: $reason")
    fi
}

clock() {
    printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60))
}

stop_runs() {
    local pid
    trap '' INT TERM HUP
    echo "stopped; the same command goes on from here"
    for pid in "${PIDS[@]}"; do kill -TERM -- "-$pid" 2>/dev/null; done
    wait 2>/dev/null
}
