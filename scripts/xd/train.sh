#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

HELP="Usage: scripts/xd/train.sh [settings] [-- KEY VALUE ...]
Cross-dataset, first step: train on all classes of the source. With several --shots this is the few-shot sweep.

$SOURCE_HELP"

settings "$@"
add_all_runs train_done train
sweep
