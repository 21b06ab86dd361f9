"""Supervised Dassl trainers in the styles of public forks, over OpenAI's modules at full length: what `distilled` wraps.

They know nothing of KDPL's trainers, and take their options from the configuration nodes of CoOp, MaPLe and PromptSRC.
"""

import copy

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn
from torch.nn.functional import cross_entropy

from kdpl.clip.loading import load_clip


def text_features(clip, tokens, ctx, deep=()):
    """All 77 positions; `ctx (n, w)` in the places behind SOT, `deep` in the same places of the next layers."""
    n, classes = len(ctx), len(tokens)
    x = clip.token_embedding(tokens)  # (C, 77, w)
    x = torch.cat([x[:, :1], ctx.expand(classes, -1, -1), x[:, 1 + n :]], 1) + clip.positional_embedding
    x = x.permute(1, 0, 2)
    for layer, block in enumerate(clip.transformer.resblocks):
        if 0 < layer <= len(deep):
            x = torch.cat([x[:1], deep[layer - 1][:, None].expand(-1, classes, -1), x[1 + n :]])
        x = block(x)
    x = clip.ln_final(x.permute(1, 0, 2))
    return F.normalize(x[torch.arange(classes), tokens.argmax(-1)] @ clip.text_projection, dim=-1)


def image_features(visual, images, prompts=(), deep=()):
    x = visual.conv1(images).flatten(2).permute(0, 2, 1)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    if len(prompts):
        x = torch.cat([x, prompts.expand(len(x), -1, -1)], 1)
    x = visual.ln_pre(x).permute(1, 0, 2)
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer <= len(deep):
            x = torch.cat([x[: -len(prompts)], deep[layer - 1][:, None].expand(-1, x.shape[1], -1)])
        x = block(x)
    return F.normalize(visual.ln_post(x[0]) @ visual.proj, dim=-1)


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
        return image_features(self.clip.visual, images), text_features(self.clip, self.tokens, self.learner.ctx)

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


@TRAINER_REGISTRY.register()
class StyleAmp(Style):
    """Autocast and gradient scaling around nn.CrossEntropyLoss."""

    def build_model(self):
        super().build_model()
        self.scaler, self.criterion = torch.amp.GradScaler(self.device.type, init_scale=8.0), nn.CrossEntropyLoss()

    def step(self, images, labels):
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(images)
            loss = self.criterion(logits, labels)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        return loss, logits, labels


class MaPLeModel(StyleModel):
    def build(self, cfg):
        depth, w_t = cfg.TRAINER.MAPLE.PROMPT_DEPTH, self.clip.ln_final.weight.shape[0]
        w_v = self.clip.visual.conv1.out_channels
        learner = self.learner
        learner.ctx, learner.proj = nn.Parameter(self.words(2)), nn.Linear(w_t, w_v)
        learner.compound_prompts_text = nn.ParameterList(torch.randn(2, w_t) * 0.02 for _ in range(depth - 1))
        learner.compound_prompt_projections = nn.ModuleList(nn.Linear(w_t, w_v) for _ in range(depth - 1))

    def features(self, images):
        learner = self.learner
        deep = list(learner.compound_prompts_text)
        visual = [proj(prompt) for proj, prompt in zip(learner.compound_prompt_projections, deep, strict=True)]
        text = text_features(self.clip, self.tokens, learner.ctx, deep)
        return image_features(self.clip.visual, images, learner.proj(learner.ctx), visual), text

    def forward(self, images, labels=None):
        """The loss inside the model, while it trains."""
        logits = super().forward(images)
        return F.cross_entropy(logits, labels) if self.learner.training else logits


@TRAINER_REGISTRY.register()
class StyleMaPLe(Style):
    model_class, model_name = MaPLeModel, "MultiModalPromptLearner"

    def step(self, images, labels):
        loss = self.model(images, labels)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return loss, None, labels


class PromptSRCModel(StyleModel):
    def build(self, cfg):
        from kdpl.text.templates import imagenet_templates

        depth, w_t = cfg.TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT, self.clip.ln_final.weight.shape[0]
        w_v = self.clip.visual.conv1.out_channels
        self.learner.text = nn.ParameterList([self.words(4), *(torch.randn(4, w_t) * 0.02 for _ in range(depth - 1))])
        self.learner.visual = nn.ParameterList(torch.randn(4, w_v) * 0.02 for _ in range(depth))
        tokenize = load_clip(cfg.MODEL.BACKBONE.NAME).tokenizer
        with torch.no_grad():
            each = [self.clip.encode_text(tokenize([t.format(n) for t in imagenet_templates(60)])).mean(0) for n in self.names]
        self.register_buffer("frozen_text", F.normalize(torch.stack(each), dim=-1))

    def features(self, images):
        (ctx, *deep), (first, *visual) = self.learner.text, self.learner.visual
        return image_features(self.clip.visual, images, first, visual), text_features(self.clip, self.tokens, ctx, deep)

    def forward(self, images, labels=None):
        f, g = self.features(images)
        logits = self.similarity(f, g)
        if not self.learner.training:
            return logits
        with torch.no_grad():
            f0 = image_features(self.clip.visual, images)
            logits0 = self.similarity(f0, self.frozen_text)
        return F.cross_entropy(logits, labels), logits, logits0, F.l1_loss(g, self.frozen_text), F.l1_loss(f, f0)


@TRAINER_REGISTRY.register()
class StylePromptSRC(Style):
    """A cross-entropy among regularisers, and a weighted average of the epochs, which no checkpoint of Dassl's holds."""

    model_class, model_name = PromptSRCModel, "VLPromptLearner"

    def build_model(self):
        super().build_model()
        self.average, self.epochs_seen = None, 0

    def step(self, images, labels):
        o = self.cfg.TRAINER.PROMPTSRC
        ce, logits, logits0, text, image = self.model(images, labels)
        apart = F.kl_div(logits.log_softmax(1), logits0.log_softmax(1), reduction="sum", log_target=True) / logits.numel()
        loss = ce + o.TEXT_LOSS_WEIGHT * text + o.IMAGE_LOSS_WEIGHT * image + apart
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.epochs_seen += 1
            state = copy.deepcopy(self.model.learner.state_dict())
            weight = self.epochs_seen / sum(range(1, self.max_epoch + 1))
            self.average = {k: weight * v + (self.average[k] if self.average else 0) for k, v in state.items()}
            if self.epochs_seen == self.max_epoch:
                self.model.learner.load_state_dict(self.average)
        return loss, logits, labels


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
class StyleProbe(StyleMaPLe):
    model_class, model_name = ProbeModel, "PromptLearner"


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
class StyleSurgery(Style):
    """The gradient of the loss without its part against another one's, as ProGrad has it."""

    def step(self, images, labels):
        logits = self.model(images)
        with torch.no_grad():
            frozen = self.model.similarity(
                image_features(self.model.clip.visual, images),
                F.normalize(self.model.clip.encode_text(self.model.tokens), dim=-1),
            )
        main = F.cross_entropy(logits, labels)
        guide = -(frozen.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        ctx = self.model.learner.ctx
        keep, main_grad = (torch.autograd.grad(x, ctx, retain_graph=True)[0] for x in (guide, main))
        direction = F.normalize(keep.flatten(), dim=0)
        against = (main_grad.flatten() @ direction).clamp(max=0)
        ctx.grad = main_grad - (against * direction).view_as(ctx)
        self.optim.step()
        return main, logits, labels


@TRAINER_REGISTRY.register()
class StyleViews(Style):
    """Two views of an image, as a list (DATALOADER.K_TRANSFORMS 2)."""

    def parse_batch_train(self, batch):
        return [view.to(self.device) for view in batch["img"]], batch["label"].to(self.device)

    def step(self, images, labels):
        logits = self.model(images[0])
        apart = F.mse_loss(image_features(self.model.clip.visual, images[1]), image_features(self.model.clip.visual, images[0]))
        loss = nn.CrossEntropyLoss()(logits, labels) + apart
        self.model_backward_and_update(loss)
        return loss, logits, labels


STYLES = ("StyleCoOp", "StyleAmp", "StyleMaPLe", "StylePromptSRC", "StyleProbe", "StyleMixup", "StyleSurgery", "StyleViews")
