"""Train one of the benchmark's CLIPs from scratch on rendered art, contrastively, on a CPU.

    python tools/pretrain.py student output/student_art.npz output/student.safetensors
    python tools/pretrain.py teacher output/teacher_art.npz output/teacher.safetensors

The art is what `render_art.py` writes. The student's must not hold a style of the benchmark; the teacher knows these artists,
as one that was trained on the web would. Prints the loss, the accuracy in the batch and the zero-shot accuracy on the
benchmark's validation scenes of meals; test scenes are never looked at. Both read natural captions ("a photo of a fox on a red
background") and learn from flat colours and large drawings to full scenes; without that curriculum they hardly learn.

`--start WEIGHTS` goes on from weights that this command wrote, with full scenes from the first step and a new warm-up and decay
of the rate. The benchmark's pair was trained in two such parts (`tools/README.md`).

A step is a function of the seed and its number.
"""

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from clip.model import CLIP
from clip.simple_tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

from kdpl.clip.preprocessing import EOT, OPENAI_MEAN, OPENAI_STD, SOT, VOCABULARY
from kdpl.common.files import atomic_write
from kdpl.datasets.emoji.generator import LEVEL, SIZE, backgrounds, scene_draws
from kdpl.datasets.emoji.scenes import class_names, draw, scenes_of

MEAN, STD = (torch.tensor(channels)[:, None, None] for channels in (OPENAI_MEAN, OPENAI_STD))
COLOURS = {
    "red": (220, 50, 40),
    "green": (60, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 220, 70),
    "orange": (245, 150, 40),
    "purple": (140, 70, 180),
    "pink": (245, 150, 190),
    "gray": (140, 140, 140),
    "brown": (130, 85, 50),
    "cyan": (80, 205, 220),
    "white": (255, 255, 255),
    "black": (10, 10, 10),
}
PALETTE = torch.tensor(list(COLOURS.values())).float()
STYLE_WORDS = {
    "noto": "cartoon",
    "noto-v1": "clip art",
    "emojione": "sticker",
    "fxemoji": "illustration",
    "streamline": "colored drawing",
    "twemoji": "flat drawing",
    "fluent": "vector drawing",
    "glossy": "glossy drawing",
    "contrast": "ink drawing",
    "monotone": "outline drawing",
}
TEMPLATES = (  # twice as likely as the others: "a photo of a"
    "a photo of a {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "an image of a {}",
    "{}",
    "an icon of a {}",
    "the {}",
)
BENCHMARK_STYLES = ("twemoji", "fluent", "noto", "glossy", "contrast", "monotone")
POSITIONS = 20
MODELS = {
    "student": {"vision_layers": 4, "vision_width": 128, "vision_patch_size": 16, "transformer_layers": 4},
    "teacher": {"vision_layers": (1, 1, 1, 1), "vision_width": 24, "vision_patch_size": None, "transformer_layers": 3},
}
MAX_SCALE = {"student": 50.0, "teacher": 100.0}  # of the logits
POOL = {"student": 2500, "teacher": 6000}  # backgrounds


class Art:
    """The drawings of an art file, by thing."""

    def __init__(self, path: Path, without: Collection[str] = ()) -> None:
        with np.load(path) as file:
            rgba, self.names, self.styles = file["rgba"], file["names"].tolist(), file["styles"].tolist()
        if seen := set(self.styles) & set(without):
            raise SystemExit(f"{path} holds styles of the benchmark ({', '.join(sorted(seen))}). Render other packs.")
        if unknown := set(self.styles) - set(STYLE_WORDS):
            raise SystemExit(f"No caption word for the styles {', '.join(sorted(unknown))}. Add them to STYLE_WORDS.")
        things, styles = rgba[..., 3].any((2, 3)).nonzero()
        self.style = styles  # of each drawing
        self.thing = things
        self.rows = [np.flatnonzero(things == thing) for thing in range(len(self.names))]
        drawings = torch.from_numpy(rgba[things, styles]).permute(0, 3, 1, 2).float()  # (m, 4, 64, 64)
        alpha = drawings[:, 3:] / 255
        self.premultiplied = torch.cat([drawings[:, :3] * alpha, alpha], 1)

    def name(self, row: int) -> str:
        return self.names[self.thing[row]]

    def style_word(self, row: int) -> str:
        return STYLE_WORDS[self.styles[self.style[row]]]


def uniform(low: float, high: float, n: int) -> torch.Tensor:
    """Uniform numbers (n, 1, 1, 1), to meet images."""
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def warp(drawings: torch.Tensor, scale: torch.Tensor, turn: float, shift: torch.Tensor, stretch: float) -> torch.Tensor:
    """Scale, turn, move, stretch and mirror premultiplied drawings (n, 4, 64, 64) at random."""
    n = len(drawings)
    angle = torch.randn(n) * turn
    aspect = torch.empty(n).uniform_(1 / stretch, stretch)
    mirror = torch.randint(2, (n,)) * 2 - 1
    cosine, sine = angle.cos() / scale.view(n), angle.sin() / scale.view(n)
    rows = [torch.stack([cosine * aspect * mirror, -sine * mirror], 1), torch.stack([sine, cosine / aspect], 1)]
    matrix = torch.stack(rows, 1)  # (n, 2, 2)
    theta = torch.cat([matrix, -matrix @ shift[..., None]], 2)
    grid = F.affine_grid(theta, drawings.shape, align_corners=False)
    return F.grid_sample(drawings, grid, align_corners=False)


def recolour(image: torch.Tensor, brightness: tuple, saturation: tuple, tint: float) -> torch.Tensor:
    """Change brightness, saturation and tint of images (n, 3, 64, 64) at random."""
    n = len(image)
    image = image * uniform(*brightness, n)
    grey = image.mean(1, keepdim=True)
    return (grey + (image - grey) * uniform(*saturation, n)) * (1 + torch.randn(n, 3, 1, 1) * tint)


def blurred(image: torch.Tensor) -> torch.Tensor:
    return F.interpolate(F.avg_pool2d(image, 2), size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def background_pool(count: int, seed: int) -> torch.Tensor:
    """Backgrounds of the scene generator that are in no scene of the benchmark: (count, 3, 64, 64) uint8."""
    ours = 1 << 31  # above every row of the art
    chunks = np.array_split(np.arange(count), max(1, count // 32))
    painted = [backgrounds(scene_draws(ours + chunk, np.full(len(chunk), seed))) // LEVEL for chunk in chunks]
    return torch.from_numpy(np.concatenate(painted).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def teacher_batch(art: Art, pool: torch.Tensor, rows: np.ndarray, progress: float) -> tuple[torch.Tensor, list[str]]:
    """Scenes of random difficulty up to `progress` (0: flat and large, 1: full scenes), and plain captions."""
    n = len(rows)
    scale = uniform(0.75 - 0.3 * progress, 1.0, n)
    shift = torch.empty(n, 2).uniform_(-1, 1) * (1.05 - scale.view(n, 1))
    warped = warp(art.premultiplied[rows], scale, 0.28, shift, 1.18)
    colour = recolour(warped[:, :3], (0.7, 1.25), (0.4, 1.5), 0.12)
    grey = torch.rand(n) < 0.08
    colour[grey] = colour[grey].mean(1, keepdim=True)

    behind = pool[torch.randint(len(pool), (n,))].float()[:, torch.randperm(3)]
    if torch.rand(()) < 0.5:
        behind = behind.flip(3)
    flat = torch.rand(n) < 1 - 0.9 * progress
    behind[flat] = PALETTE[torch.randint(len(PALETTE), (int(flat.sum()),))][:, :, None, None]

    image = (colour + behind * (1 - warped[:, 3:])) * uniform(0.75, 1.15, n)
    soft = torch.rand(n) < 0.15
    image[soft] = blurred(image[soft])
    return image, [caption_of(art, row, 0.25) for row in rows]


def student_batch(art: Art, pool: torch.Tensor, rows: np.ndarray, progress: float) -> tuple[torch.Tensor, list[str]]:
    """Pictures on one colour, later a third of them full scenes, with captions that may name style and background."""
    n = len(rows)
    scale = uniform(0.75 - 0.25 * progress, 1.0, n)
    shift = torch.empty(n, 2).uniform_(-1, 1) * (1.05 - scale.view(n, 1))
    warped = warp(art.premultiplied[rows], scale, 0.26, shift, 1.12)
    colour = recolour(warped[:, :3], (0.7, 1.25), (0.6, 1.3), 0.08)

    hue = torch.randint(len(PALETTE), (n,))
    behind = PALETTE[hue][:, :, None, None].expand(-1, -1, SIZE, SIZE).clone()
    busy = torch.rand(n) < 0.35 * progress
    behind[busy] = pool[torch.randint(len(pool), (int(busy.sum()),))].float()
    image = (colour + behind * (1 - warped[:, 3:])) * uniform(0.75, 1.15, n)
    places = ["busy" if is_busy else list(COLOURS)[h] for is_busy, h in zip(busy.tolist(), hue.tolist(), strict=True)]
    return image, [student_caption(art, row, place) for row, place in zip(rows, places, strict=True)]


def student_caption(art: Art, row: int, background: str) -> str:
    caption = caption_of(art, row, 0.3)
    return f"{caption} on a {background} background" if np.random.rand() < 0.35 else caption


def caption_of(art: Art, row: int, style: float) -> str:
    """Return a caption of a drawing, which with probability `style` says how it is drawn."""
    if np.random.rand() < style:
        return f"a {art.style_word(row)} of a {art.name(row)}"
    return TEMPLATES[np.random.randint(len(TEMPLATES))].format(art.name(row))


BATCHES: dict[str, Callable] = {"student": student_batch, "teacher": teacher_batch}


class Tokens:
    """CLIP's tokenizer over the words the captions use: ids are their places among the used ones.

    The order of the ids is kept, so that the end of text stays the highest, which is how CLIP finds it.
    """

    def __init__(self, names: list[str]) -> None:
        self.tokenizer = SimpleTokenizer()
        words = [*names, *(f"{name}." for name in names), *TEMPLATES, *STYLE_WORDS.values()]
        words += [f"on a {background} background." for background in (*COLOURS, "busy")]
        self.used = sorted({t for w in words for t in self.tokenizer.encode(w)} | {0, SOT, EOT})
        self.place = {token: i for i, token in enumerate(self.used)}

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Token places (n, 20), padded with zeros."""
        out = torch.zeros(len(captions), POSITIONS, dtype=torch.long)
        for row, caption in enumerate(captions):
            text = [self.place[token] for token in self.tokenizer.encode(caption)][: POSITIONS - 2]
            text = [self.place[SOT], *text, self.place[EOT]]
            out[row, : len(text)] = torch.tensor(text)
        return out


def contrastive_loss(logits: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Symmetric cross-entropy (n, n); images that share a caption are each other's positives too."""
    texts = np.array(captions)
    target = torch.from_numpy(texts[:, None] == texts[None]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def normalised(image: torch.Tensor) -> torch.Tensor:
    return (image.clamp(0, 255) / 255 - MEAN) / STD


@torch.no_grad()
def validation_accuracy(net: CLIP, tokens: Tokens) -> float:
    """Zero-shot top-1 in percent on the validation scenes of meals, with "a photo of a {}."."""
    scenes = [scene for scene in scenes_of("meals") if scene.split == "val"]
    images = torch.from_numpy(draw(scenes)).permute(0, 3, 1, 2).float()
    net.eval()
    texts = F.normalize(net.encode_text(tokens([f"a photo of a {name}." for name in class_names("meals")])), dim=-1)
    guess = (net.encode_image(normalised(images)) @ texts.T).argmax(1)
    net.train()
    return 100 * (guess == torch.tensor([scene.label for scene in scenes])).float().mean().item()


def optimizer(net: CLIP, rate: float) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only; the logit scale learns faster."""
    groups = {"decayed": [], "plain": [], "scale": []}
    for name, parameter in net.named_parameters():
        matrix = parameter.ndim >= 2 and "embedding" not in name
        groups["scale" if name == "logit_scale" else "decayed" if matrix else "plain"].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["decayed"], "lr": rate, "weight_decay": 0.1},
            {"params": groups["plain"], "lr": rate, "weight_decay": 0.0},
            {"params": groups["scale"], "lr": 1e-2, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )


def full_state_dict(net: CLIP, used: list[int]) -> dict[str, torch.Tensor]:
    """The network's state dict with the whole token table and all positions, zero where nothing was trained."""
    state = {k: v.detach().clone() for k, v in net.state_dict().items()}
    for key, rows, length in (
        ("token_embedding.weight", used, VOCABULARY),
        ("positional_embedding", list(range(POSITIONS)), 77),
    ):
        full = torch.zeros(length, state[key].shape[1])
        full[rows] = state[key]
        state[key] = full
    return state


def load_weights(path: Path, net: CLIP, used: list[int]) -> None:
    """Load weights that this command wrote (the layout of `write`) into the network of its tokens."""
    state = load_file(path)
    if state.pop("token_embedding.used", torch.empty(0)).tolist() != used:
        raise SystemExit(f"{path} has other tokens than these captions. Give weights that this command wrote.")
    expected = {k: v.shape for k, v in net.state_dict().items()}
    if different := [k for k in expected.keys() | state.keys() if k not in state or state[k].shape != expected.get(k)]:
        raise SystemExit(f"{path} is of another network: {min(different)} differs. Give weights of the same kind.")
    net.load_state_dict(state)


def rows_of_step(art: Art, step: int, batch: int, distinct: int, seed: int) -> np.ndarray:
    """Return the rows of a step's drawings, of `distinct` things: all things in turn, in any style."""
    things = np.array([thing for thing, rows in enumerate(art.rows) if len(rows)])
    place = step * distinct + np.arange(distinct)
    turns = {turn: np.random.default_rng([seed, turn]).permutation(things) for turn in set(place // len(things))}
    chosen = [turns[p // len(things)][p % len(things)] for p in place]
    chosen += chosen[: batch - distinct]
    return np.array([np.random.choice(art.rows[thing]) for thing in chosen])


def training_step(
    net: CLIP, tokens: Tokens, optim: torch.optim.Optimizer, images: torch.Tensor, captions: list[str]
) -> tuple[float, float]:
    """One step on a batch; return the loss and the share of images whose own caption scores highest."""
    texts = tokens([f"{caption}." if np.random.rand() < 0.5 else caption for caption in captions])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_features, text_features = net.encode_image(normalised(images)), net.encode_text(texts)
    image_features, text_features = (F.normalize(f.float(), dim=-1) for f in (image_features, text_features))
    logits = net.logit_scale.exp() * image_features @ text_features.T  # (n, n)
    loss = contrastive_loss(logits, captions)
    optim.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optim.step()
    return loss.item(), (logits.argmax(1) == torch.arange(len(images))).float().mean().item()


def train(
    kind: str, art: Art, *, steps: int, batch: int, rate: float, seed: int, start: Path | None = None
) -> dict[str, torch.Tensor]:
    """Train, from the weights `start` if given; return the state dict in OpenAI's layout."""
    torch.manual_seed(seed)
    tokens = Tokens(art.names)
    net = CLIP(
        embed_dim=128,
        image_resolution=SIZE,
        context_length=POSITIONS,
        vocab_size=len(tokens.used),
        transformer_width=128,
        transformer_heads=2,
        **MODELS[kind],
    )
    if start is not None:
        load_weights(start, net, tokens.used)
    optim = optimizer(net, rate)
    base_rates = [group["lr"] for group in optim.param_groups]
    pool = background_pool(POOL[kind], seed)
    # The student sees a quarter of a batch's things twice, in other pictures, so its captions must tell them apart.
    distinct = batch if kind == "teacher" else batch * 3 // 4

    recent: deque[tuple[float, float]] = deque(maxlen=50)  # loss and accuracy of the last steps
    began = reported = time.monotonic()
    for step in range(steps):
        torch.manual_seed(seed * steps + step)
        np.random.seed([seed, step])
        for group, base in zip(optim.param_groups, base_rates, strict=True):
            group["lr"] = base * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        rows = rows_of_step(art, step, batch, distinct, seed)
        progress = min(1.0, 4 * step / steps) if start is None else 1.0
        images, captions = BATCHES[kind](art, pool, rows, progress)
        recent.append(training_step(net, tokens, optim, images, captions))
        with torch.no_grad():
            net.logit_scale.clamp_(0, math.log(MAX_SCALE[kind]))
        now = time.monotonic()
        if now - reported > 30 or step == 0:
            reported = now
            loss, accuracy = np.mean(recent, axis=0)
            print(
                f"{now - began:5.0f} s  step {step + 1:,} of {steps:,}  loss {loss:.3f}  "
                f"batch accuracy {accuracy:.1%}  scale {net.logit_scale.exp().item():.1f}  "
                f"validation (meals) {validation_accuracy(net, tokens):.1f}%",
                flush=True,
            )
    print(f"done: {steps:,} steps, validation (meals) {validation_accuracy(net, tokens):.1f}%")
    return full_state_dict(net, tokens.used)


def write(state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights in fp16, of the token table the rows that are not zero, and the positions that were trained."""
    table = state_dict["token_embedding.weight"]
    used = table.any(dim=1).nonzero()[:, 0]
    compact = state_dict | {"token_embedding.weight": table[used]}
    compact["positional_embedding"] = compact["positional_embedding"][:POSITIONS]
    half = {k: v.half() if v.ndim and v.is_floating_point() else v for k, v in compact.items()}
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in half.items()} | {"token_embedding.used": used.int()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=MODELS)
    parser.add_argument("art", type=Path, help="what render_art.py wrote")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--start", type=Path, help="weights to go on from, which this command wrote")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    art = Art(args.art, without=BENCHMARK_STYLES if args.kind == "student" else ())
    settings = {"steps": args.steps, "batch": args.batch, "rate": args.rate, "seed": args.seed, "start": args.start}
    write(train(args.kind, art, **settings), args.output)


if __name__ == "__main__":
    main()
