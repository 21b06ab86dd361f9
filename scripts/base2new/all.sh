#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

HELP="Usage: scripts/base2new/all.sh [settings] [-- KEY VALUE ...]
Base-to-new: train on the base classes of every data set, then test on them and on the new ones.

$DATASETS_HELP"

settings "$@"
add_all_runs both_done both
sweep
