#!/usr/bin/env bash
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

HELP="Usage: scripts/base2new/test.sh [settings] [-- KEY VALUE ...]
Base-to-new, second step: test what train.sh has trained on the new classes of every data set.

$DATASETS_HELP"

settings "$@"
add_all_runs test_done test_new
sweep
