#!/usr/bin/env bash
# Base to new, second step: test the prompts of train.sh on the new classes of every data set. Settings: all.sh.
# shellcheck source-path=SCRIPTDIR source=all.sh
. "$(dirname "${BASH_SOURCE[0]}")/all.sh" --steps test "$@"
