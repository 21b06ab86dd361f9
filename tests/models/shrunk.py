# ruff: noqa: E402
"""Every architecture of open_clip with a few layers a tower, and a folder like the hub's cache with small tokenizers for them.

`shrink()` puts configurations under open_clip's own names in place of its own, so that names, tags and recipes stay the
published ones. Import this before `huggingface_hub`, `transformers` or `open_clip` read where the hub's cache is.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

HUB = Path(os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="kdpl-hub-")))
os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip
import torch
from narrow import LAYERS, WIDTH, narrow, side
from torch import Tensor, nn

COMMIT = "0" * 40
VOCABULARY = 400  # of the small tokenizers
SPECIAL = {  # by repository: special tokens in the order of their ids, and what stands around a text
    "bert": (("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "[CLS] $A [SEP]", {"cls_token": "[CLS]", "sep_token": "[SEP]"}),
    "roberta": (("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    "xlm": (("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    "nllb": (("<s>", "<pad>", "</s>", "<unk>", "eng"), "eng $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}),
    "mt5": (("<pad>", "</s>", "<unk>"), "$A </s>", {"eos_token": "</s>"}),
    "SigLIP2": (("<pad>", "</s>", "<bos>", "<unk>"), "$A </s>", {"eos_token": "</s>", "bos_token": "<bos>"}),
    "SigLIP": (("<unk>", "</s>"), "$A </s>", {"eos_token": "</s>", "pad_token": "</s>"}),
}
TEXTS = ["a photo of a green salad.", "a photo of a hot dog.", "a picture of an ice cream cone", "this is a small X"]


def shrink() -> None:
    """Put shrunk configurations in place of open_clip's, and make the hub's folder."""
    folder = Path(tempfile.mkdtemp(prefix="kdpl-models-"))
    repositories, towers = set(), set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if "timm_model_name" in vision:
            vision["image_size"] = side(vision["timm_model_name"]) or vision["image_size"]
            vision["timm_model_name"] = narrow(vision["timm_model_name"])
            if vision["timm_proj"] == "none":  # the image tower's width is that of the features
                config["embed_dim"] = WIDTH
        elif isinstance(vision["layers"], list):
            vision.update(layers=[1, 1, 1, 1], width=32, image_size=64)
        else:
            vision.update(layers=LAYERS, width=2 * vision.get("head_width", 64), image_size=4 * vision["patch_size"])
        if "hf_model_name" in text:
            towers.add(text["hf_model_name"])
        else:
            text.update(layers=LAYERS, width=WIDTH, heads=2)
        if "hf_tokenizer_name" in text:
            repositories.add(text["hf_tokenizer_name"])
            text["vocab_size"] = VOCABULARY
        if "multimodal_cfg" in config:
            config["multimodal_cfg"].update(layers=1, width=WIDTH, heads=2)
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    if importlib.util.find_spec("transformers"):
        _fill_hub(repositories, towers)


def _fill_hub(repositories: set[str], towers: set[str]) -> None:
    """Write small tokenizers and configurations, unless the process that started this one has."""
    for names, file, write in (
        (repositories, "tokenizer_config.json", _write_tokenizer),
        (towers, "config.json", _write_config),
    ):
        for repository in names:
            if not (_snapshot(repository) / file).exists():
                write(_snapshot(repository), repository)


def randomize(model: nn.Module) -> None:
    """Give every weight, bias and statistic of a model a value that shows."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "logit_" in name:
                continue
            if value.dim() < 2:
                value.add_(0.1 * torch.randn_like(value))
            elif not value.isfinite().all() or value.std() < 1e-3:  # CoCa's decoder has a weight that nothing initialises
                value.copy_(0.05 * torch.randn_like(value))
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.1 * torch.randn_like(value))
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)


def library_model(name: str, tag: str) -> nn.Module:
    """Return open_clip's own model of a name, random, with the activation of a weights tag."""
    quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")) if tag else False
    torch.manual_seed(len(name))
    model = open_clip.create_model(name, pretrained=None, force_quick_gelu=quick, pretrained_text=False)
    randomize(model)
    return model.eval().requires_grad_(False)


def library_tokenizer(name: str) -> Callable:
    """Return open_clip's own tokenizer of a name, without asking the hub for files that no tokenizer needs."""
    text = open_clip.get_model_config(name)["text_cfg"]
    if "hf_tokenizer_name" not in text:
        return open_clip.get_tokenizer(name)
    folder = _snapshot(text["hf_tokenizer_name"])
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=length, **text.get("tokenizer_kwargs", {}))


def encode(model: nn.Module, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the library's features of images and texts, not normalised."""
    with torch.no_grad():
        return model.encode_image(images, normalize=False), model.encode_text(ids, normalize=False)


def _snapshot(repository: str) -> Path:
    """Return the folder of a repository's files in a cache as the hub has it."""
    top = HUB / "hub" / f"models--{repository.replace('/', '--')}"
    (top / "refs").mkdir(parents=True, exist_ok=True)
    (top / "refs" / "main").write_text(COMMIT)
    folder = top / "snapshots" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_tokenizer(folder: Path, repository: str) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special, around, roles = next(value for start, value in SPECIAL.items() if start in repository)
    kind, trainer, options = models.Unigram(), trainers.UnigramTrainer, {"unk_token": "<unk>"}
    if "bert" in repository and "roberta" not in repository:
        kind, trainer, options = models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer, {}
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if not options else pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizers.Lowercase() if not options else normalizers.NFKC()
    tokenizer.train_from_iterator(
        TEXTS * 4, trainer(vocab_size=VOCABULARY - 10, special_tokens=list(special), show_progress=False, **options)
    )
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    pad = next((token for token in special if "pad" in token.lower()), special[0])
    unknown = next(token for token in special if "unk" in token.lower())
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, padding_side="right", **{"pad_token": pad, **roles}
    ).save_pretrained(folder)


def _write_config(folder: Path, repository: str) -> None:
    import transformers

    small = {"vocab_size": VOCABULARY, "pad_token_id": 1}
    if "mt5" in repository:
        config = transformers.MT5Config(
            vocab_size=VOCABULARY, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2, pad_token_id=0
        )
    elif "nllb" in repository:
        config = transformers.M2M100Config(
            **small, d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=128
        )
    else:
        kind = transformers.XLMRobertaConfig if "xlm" in repository else transformers.RobertaConfig
        config = kind(
            **small, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
            max_position_embeddings=100,
        )  # fmt: skip
    config.save_pretrained(folder)
