#!/usr/bin/env bash
# Base to new, first step: train on the base classes of every data set and test on them. Settings: all.sh.
# shellcheck source-path=SCRIPTDIR source=all.sh
. "$(dirname "${BASH_SOURCE[0]}")/all.sh" --steps train "$@"
