"""Registries, files, random seeds, logging, meters and checkpoints."""
# ruff: noqa: F401 - others import these names from here

from dassl.utils.checkpoint import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.logger import Logger, setup_logger
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.registry import Registry, check_availability
from dassl.utils.tools import (
    collect_env_info,
    listdir_nohidden,
    mkdir_if_missing,
    set_random_seed,
    tolist_if_not,
    write_json,
)
from kdpl.common.safe_text import read_json
from kdpl.training.pixels import read_image
