"""An installed Dassl for tests: a real one if the environment variable KDPL_DASSL names its folder, else a stand-in.

The stand-in is not Dassl. It is the bundled engine under another roof, so that `kdpl` takes it for an installed one, with an
epoch loop after Dassl's: the loader's own iterations, a float from every term of a step, `loss` checked for NaN.
"""

import os
import shutil
from pathlib import Path

from support import ROOT

EPOCH_LOOP = '''

class TrainerX(SimpleTrainer):
    """Stands in for an installed Dassl's."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses = MetricMeter()
        self.num_batches = len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(self.train_loader_x):
            losses.update(self.forward_backward(batch))
            if (self.batch_idx + 1) % self.cfg.TRAIN.PRINT_FREQ == 0:
                print(f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] {losses}")

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)
'''


def installed_dassl(folder: Path) -> str:
    """Return what PYTHONPATH begins with so that a Dassl is installed; a stand-in is written to `folder`."""
    if real := os.environ.get("KDPL_DASSL"):
        return real
    shutil.copytree(ROOT / "kdpl/fallback/dassl", folder / "dassl", ignore=shutil.ignore_patterns("__pycache__"))
    trainer = folder / "dassl/engine/trainer.py"
    trainer.write_text(trainer.read_text(encoding="utf-8") + EPOCH_LOOP, encoding="utf-8")
    return str(folder)
