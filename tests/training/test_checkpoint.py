"""Checkpoints hold learned prompts, run no code, and are refused where they do not fit."""

import sys
import types
from collections import OrderedDict

import pytest
import torch
from support.files import Evil, learned

from kdpl.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    load_learned,
    save_checkpoint,
)


def test_a_checkpoint_is_read_back_and_named_as_the_newest(tmp_path):
    for epoch in (1, 2):
        save_checkpoint({"state_dict": learned().state_dict(), "epoch": epoch}, tmp_path / "p", f"model.pth.tar-{epoch}")
    save_checkpoint({"state_dict": learned().state_dict(), "epoch": 1}, tmp_path / "p", "model-best.pth.tar")
    assert checkpoint_path(tmp_path, "p", 1).name == "model.pth.tar-1"
    assert checkpoint_path(tmp_path, "p", None).name == "model-best.pth.tar"
    assert (tmp_path / "p" / "checkpoint").read_text().strip() == "model.pth.tar-2"
    (tmp_path / "p" / "model-best.pth.tar").unlink()
    assert load_checkpoint(checkpoint_path(tmp_path, "p", None))["epoch"] == 2
    with pytest.raises(CheckpointError, match=r"Its folder has model.pth.tar-1, .*: choose one with --load-epoch"):
        checkpoint_path(tmp_path, "p", 7)
    with pytest.raises(CheckpointError, match="Expected the output folder of a run in --model-dir"):
        checkpoint_path(tmp_path / "nowhere", "p", None)


def test_a_published_checkpoint_with_whole_scheduler_objects_is_read(tmp_path):
    """Dassl's warm-up schedulers keep another scheduler, and so an optimizer, as whole objects in their state."""
    module = types.ModuleType("dassl.optim.lr_scheduler")

    class ConstantWarmupScheduler:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    ConstantWarmupScheduler.__module__ = module.__name__
    ConstantWarmupScheduler.__qualname__ = "ConstantWarmupScheduler"
    module.ConstantWarmupScheduler = ConstantWarmupScheduler
    prompts = learned()
    optim = torch.optim.SGD(prompts.parameters(), lr=0.1, momentum=0.9)
    prompts.ctx.sum().backward()
    optim.step()  # from now on the optimizer has a state, which is a defaultdict
    inner = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 5)
    state = {
        "state_dict": OrderedDict(prompts.state_dict(), token_prefix=torch.zeros(3, 1, 8), token_suffix=torch.zeros(3, 72, 8)),
        "epoch": 50,
        "optimizer": optim.state_dict(),
        "scheduler": {"successor": inner, "other": ConstantWarmupScheduler(optim), "last_epoch": 3},
        "val_result": 71.5,
    }
    previous = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        torch.save(state, tmp_path / "model.pth.tar-50")
    finally:
        sys.modules.pop(module.__name__)
        if previous is not None:
            sys.modules[module.__name__] = previous
    loaded = load_checkpoint(tmp_path / "model.pth.tar-50")
    assert loaded["epoch"] == 50
    target = learned()
    load_learned(target, loaded["state_dict"], "x")
    assert torch.equal(target.ctx, prompts.ctx)


def test_a_checkpoint_that_would_run_code_is_refused_by_name_and_not_run(tmp_path):
    torch.save({"state_dict": {}, "x": Evil(str(tmp_path / "was here"))}, tmp_path / "evil")
    with pytest.raises(CheckpointError, match=r"is refused: it holds .*mkdir, which could run code"):
        load_checkpoint(tmp_path / "evil")
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("damage", ["text", "truncated", "list"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    path = tmp_path / "model.pth.tar-1"
    torch.save([1, 2] if damage == "list" else {"state_dict": {"ctx": torch.zeros(100, 100)}}, path)
    content = {"text": b"hello", "truncated": path.read_bytes()[:-500], "list": path.read_bytes()}[damage]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pth\.tar-1"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"ctx": torch.zeros(16, 8)}, r"ctx is \(16, 8\) in torch.float32, \(4, 8\) in this model"),
        ({"prompt_learner.ctx": torch.zeros(2, 8)}, r"ctx \(4, 8\) is missing; prompt_learner.ctx \(2, 8\) has no place"),
        ({"ctx": torch.zeros(4, 8), "meta_net.x.weight": torch.zeros(2, 8)}, r"meta_net.x.weight \(2, 8\) has no place"),
        ({"ctx": torch.full((4, 8), float("nan"))}, "ctx holds NaN or infinite values"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_with_both_shapes(state, message):
    module = learned()
    before = module.ctx.clone()
    with pytest.raises(CheckpointError, match=message):
        load_learned(module, state, "some.pth")
    assert torch.equal(module.ctx, before)
    frozen = {"token_prefix": 9, "image_encoder.proj": 3, "image_encoder.resblocks.0.mlp.c_proj.weight": 3, "logit_scale": 1}
    load_learned(module, {"ctx": torch.ones(4, 8), **{key: torch.zeros(n) for key, n in frozen.items()}}, "x")
    assert torch.equal(module.ctx, torch.ones(4, 8)), "frozen weights and buffers of class names are passed over"
