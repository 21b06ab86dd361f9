#!/usr/bin/env bash
# Cross-dataset, second step: test the prompts of train.sh on other data sets, all of a run in one process. Settings: all.sh.
# shellcheck source-path=SCRIPTDIR source=all.sh
. "$(dirname "${BASH_SOURCE[0]}")/all.sh" --steps test "$@"
