#!/usr/bin/env bash
# Cross-dataset, first step: train on all classes of the source and test on them. With several --shots it is the few-shot sweep. Settings: all.sh.
# shellcheck source-path=SCRIPTDIR source=all.sh
. "$(dirname "${BASH_SOURCE[0]}")/all.sh" --steps train "$@"
