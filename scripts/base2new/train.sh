#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

HELP="Usage: scripts/base2new/train.sh [settings] [-- KEY VALUE ...]
Base-to-new, first step: train on the base classes of every data set and test on them.

$DATASETS_HELP"

settings "$@"
add_all_runs train_done train
sweep
