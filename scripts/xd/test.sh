#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

HELP="Usage: scripts/xd/test.sh [settings] [-- KEY VALUE ...]
Cross-dataset, second step: test what train.sh has trained on other data sets, all of them in one process.

$SOURCE_HELP
$DATASETS_HELP"

settings "$@"
add_all_runs test_done test_others
sweep
