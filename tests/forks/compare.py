"""A file of `--prepare`: the trainer of a trial takes four steps beside KDPL's own first; the result gets `compared`."""

from pathlib import Path
from typing import Any

import torch

from kdpl.trainers.registry import PREFIX
from kdpl.trainers.wrapped import DistilledTrainer


def watch(result: dict[str, Any], name: str, clip_file: Path) -> None:
    """Put into `result` how a distilled trainer and KDPL's own of the name differ, when it is built."""
    build = DistilledTrainer.__init__

    def built(self: Any, cfg: Any) -> None:
        from dassl.engine import TRAINER_REGISTRY

        build(self, cfg)
        try:
            result["compared"] = compare(self, TRAINER_REGISTRY.get(f"{PREFIX}{name}"), cfg, clip_file)
        except ValueError as error:  # an option of the fork's that KDPL's own refuses
            result["incomparable"] = str(error)
        build(self, cfg)

    DistilledTrainer.__init__ = built


def compare(trainer: Any, own: type, cfg: Any, clip_file: Path) -> dict[str, Any]:
    """Take four steps with a wrapped trainer and KDPL's own, from the same parameters; return the largest differences."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = own.__name__, f"openai:{clip_file}"  # of no published size
    cfg.OUTPUT_DIR += "/own"
    cfg.freeze()
    ours = own(cfg)
    theirs = dict(trainer._models[next(iter(trainer._models))].named_parameters())
    pairs = [(p, theirs[name]) for name, p in ours.student.learned.named_parameters()]
    with torch.no_grad():
        for p, q in pairs:
            p.copy_(q)
    start = [p.detach().clone() for p, _ in pairs]
    for each in (ours, trainer):
        each.set_model_mode("train")
        each.num_batches = 10**6
        for group in each.optim.param_groups:
            group["lr"] = 0.002
    differences = []
    for i, batch in enumerate(list(ours.train_loader_x)[:4]):
        ours.batch_idx = trainer.batch_idx = i
        mine = ours.forward_backward(batch)
        other = trainer.forward_backward({**batch, "img": ours.images(batch)})
        loss = float(mine.get("loss_total", mine["loss"]))
        differences.append(abs(loss - other["loss"]) / max(1.0, abs(loss)))
    return {
        "loss": max(differences),
        "parameters": max(float((p - q).detach().abs().max()) for p, q in pairs),
        "moved": max(float((p.detach() - s).abs().max()) for (p, _), s in zip(pairs, start, strict=True)),
    }


if "result" in globals():  # in a trial
    watch(*(globals()[name] for name in ("result", "trainer", "clip_file")))
