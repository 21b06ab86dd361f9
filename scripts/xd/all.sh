#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

HELP="Usage: scripts/xd/all.sh [settings] [-- KEY VALUE ...]
Cross-dataset and domain generalisation: train on all classes of the source, then test on other data sets.

$SOURCE_HELP
$DATASETS_HELP"

settings "$@"
add_all_runs both_done both
sweep
