"""The CLIPs of a fit: which ones suit this machine, what they weigh, and what will be downloaded."""

from typing import NamedTuple

STUDENT = "ViT-B/32"
ON_GPU = "ViT-H-14-quickgelu"  # the paper's
ON_CPU = "ViT-L-14:dfn2b"  # two cores look at a thousand photos in 6 (with bf16) to 11 minutes: benchmarks/fit.py --towers
SMALLER = ("ViT-B/32", "ViT-B/16")  # student and teacher
MINUTES = {"cuda": 10.0, "cpu": 30.0}  # that a pass over the photos may take, unless --minutes says otherwise


def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_teacher() -> str:
    """Return the teacher that suits this machine."""
    return ON_GPU if device_type() == "cuda" else ON_CPU


class Size(NamedTuple):
    """What is known of a CLIP's weights before they are there."""

    name: str
    megabytes: float  # of the file
    here: bool

    def __str__(self) -> str:
        return f"{self.name} ({_in_words(self.megabytes)}, {'here already' if self.here else 'will be downloaded'})"


def _in_words(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def size_of(name: str) -> Size:
    """Return the size of a CLIP's weights: of the file if it is here, else by its parameters; it raises as `describe`."""
    from kdpl.clip.loading import find_weights, outline_clip
    from kdpl.clip.names import resolve

    file = find_weights(name)
    if file is not None:
        return Size(name, file.stat().st_size / 1e6, True)
    each = 2 if resolve(name).kind == "openai" else 4  # bytes of a parameter, as published
    return Size(name, each * sum(p.numel() for p in outline_clip(name).model.parameters()) / 1e6, False)


def downloads(sizes: list[Size]) -> str:
    """Return what will be downloaded, and which smaller pair would do; empty if all is here."""
    total = sum(size.megabytes for size in sizes if not size.here)
    if not total:
        return ""
    less = sum(size.megabytes for size in map(size_of, SMALLER) if not size.here)
    smaller = f"; with --student {SMALLER[0]} --teacher {SMALLER[1]} it would be {less:.0f} MB"
    return _in_words(total) + (smaller if less < total else "")
