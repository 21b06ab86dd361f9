#!/usr/bin/env bash
# Base to new: train on the base classes of every data set, then test on these and on the new classes.
# Each variable is also a flag (--seeds 1 2 3), --help lists them; KEY VALUE pairs for train.py follow after `--`.
# Finished runs are skipped and interrupted ones resumed: after any interruption, start the same command again.
# The other variables and their defaults: ../sweep.sh.

KIND=base2new
SCRIPT_FLAGS=
DATASETS=${DATASETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 imagenet}
# shellcheck source-path=SCRIPTDIR source=../sweep.sh
. "$(dirname "${BASH_SOURCE[0]}")/../sweep.sh" "$@"
