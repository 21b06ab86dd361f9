#!/usr/bin/env bash
# Cross-dataset and domain generalisation: train on all classes of the source, then test on other data sets.
# Each variable is also a flag (--seeds 1 2 3), --help lists them; KEY VALUE pairs for train.py follow after `--`.
# Finished runs are skipped and interrupted ones resumed: after any interruption, start the same command again.
# The other variables and their defaults: ../sweep.sh.

KIND=xd
SCRIPT_FLAGS="--source ${SOURCE:-imagenet}"
DATASETS=${DATASETS:-caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 \
    imagenetv2 imagenet_sketch imagenet_a imagenet_r}
# shellcheck source-path=SCRIPTDIR source=../sweep.sh
. "$(dirname "${BASH_SOURCE[0]}")/../sweep.sh" "$@"
