"""Supervised Dassl trainers in the styles of public forks, over OpenAI's modules at full length: what `distilled` wraps.

They know nothing of KDPL's trainers.
"""

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn
from torch.nn.functional import cross_entropy

from kdpl.clip.loading import load_clip


def text_features(clip, tokens, ctx):
    """All 77 positions; `ctx (n, w)` in the places behind SOT."""
    n, classes = len(ctx), len(tokens)
    x = clip.token_embedding(tokens)  # (C, 77, w)
    x = torch.cat([x[:, :1], ctx.expand(classes, -1, -1), x[:, 1 + n :]], 1) + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
    return F.normalize(x[torch.arange(classes), tokens.argmax(-1)] @ clip.text_projection, dim=-1)


def image_features(clip, images):
    return F.normalize(clip.encode_image(images), dim=-1)


class StyleModel(nn.Module):
    """A frozen CLIP and what learns, in `learner`; by default CoOp's context."""

    def __init__(self, cfg, classnames):
        super().__init__()
        clip = load_clip(cfg.MODEL.BACKBONE.NAME)
        self.clip, self.logit_scale = clip.model, clip.model.logit_scale
        self.register_buffer("tokens", clip.tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in classnames]))
        self.learner = nn.Module()
        self.names = [name.replace("_", " ") for name in classnames]
        self.build(cfg)

    def build(self, cfg):
        self.learner.ctx = nn.Parameter(self.words(4))

    def words(self, n):
        return self.clip.token_embedding(self.tokens[0, 1 : 1 + n]).detach().clone()

    def features(self, images):
        return image_features(self.clip, images), text_features(self.clip, self.tokens, self.learner.ctx)

    def similarity(self, images, text):
        return self.logit_scale.exp() * images @ text.t()

    def forward(self, images, labels=None):
        return self.similarity(*self.features(images))


class Style(TrainerX):
    """Loss in forward_backward, as CoOp; the others change the model or the step."""

    model_class, model_name = StyleModel, "prompt_learner"

    def build_model(self):
        cfg = self.cfg
        self.model = self.model_class(cfg, self.dm.dataset.classnames)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("learner."))
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.model_name, self.model.learner, self.optim, self.sched)

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch):
        loss, logits, labels = self.step(*self.parse_batch_train(batch))
        summary = {"loss": loss.item()}
        if logits is not None:
            summary["acc"] = compute_accuracy(logits, labels)[0].item()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def step(self, images, labels):
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        return loss, logits, labels


@TRAINER_REGISTRY.register()
class StyleCoOp(Style):
    pass


class ProbeModel(StyleModel):
    def build(self, cfg):
        super().build(cfg)
        self.learner.probe = nn.Linear(self.clip.text_projection.shape[1], len(self.tokens))

    def forward(self, images, labels=None):
        """Two losses: on the prompts' logits, and on those of a probe that reads text and image features."""
        f, g = self.features(images)
        logits = self.similarity(f, g)
        if not self.learner.training:
            return logits
        probed = self.learner.probe(torch.cat([g[labels], f]))
        return 0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(probed, torch.cat([labels, labels]))


@TRAINER_REGISTRY.register()
class StyleProbe(Style):
    """The loss inside the model, as MaPLe, in automatic mixed precision."""

    model_class, model_name = ProbeModel, "PromptLearner"

    def build_model(self):
        super().build_model()
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=8.0)

    def step(self, images, labels):
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(images, labels)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        return loss, None, labels


@TRAINER_REGISTRY.register()
class StyleMixup(Style):
    """Mixtures of images with mixtures of losses, and a second net with its own optimizer that nobody registers.

    The loss is a name imported long before anything is replaced.
    """

    def build_model(self):
        super().build_model()
        self.gate = nn.Linear(1, 1).to(self.device)
        self.optim_gate = torch.optim.Adam(self.gate.parameters(), lr=0.01)

    def step(self, images, labels):
        lam, other = torch.rand(len(images), device=self.device), torch.randperm(len(images), device=self.device)
        mixed = lam.view(-1, 1, 1, 1) * images + (1 - lam).view(-1, 1, 1, 1) * images[other]
        logits = self.model(mixed)
        a, b = (cross_entropy(logits, y, reduction="none") for y in (labels, labels[other]))
        loss = (self.gate(images.new_ones(1, 1)).sigmoid() * (lam * a + (1 - lam) * b)).mean()
        for optim in (self.optim, self.optim_gate):
            optim.zero_grad()
        loss.backward()
        for optim in (self.optim, self.optim_gate):
            optim.step()
        return loss, None, labels


@TRAINER_REGISTRY.register()
class StyleViews(Style):
    """Two views of an image, as a list (DATALOADER.K_TRANSFORMS 2)."""

    def parse_batch_train(self, batch):
        return [view.to(self.device) for view in batch["img"]], batch["label"].to(self.device)

    def step(self, images, labels):
        logits = self.model(images[0])
        apart = F.mse_loss(image_features(self.model.clip, images[1]), image_features(self.model.clip, images[0]))
        loss = nn.CrossEntropyLoss()(logits, labels) + apart
        self.model_backward_and_update(loss)
        return loss, logits, labels


STYLES = ("StyleCoOp", "StyleProbe", "StyleMixup", "StyleViews")
