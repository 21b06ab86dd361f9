"""The CLIPs of a fit: which ones suit this machine, what they weigh, and what will be downloaded."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Size:
    """What is known of a CLIP's weights before they are there."""

    name: str
    megabytes: float  # of the file
    here: bool

    def __str__(self) -> str:
        weight = f"{self.megabytes / 1000:.1f} GB" if self.megabytes >= 1000 else f"{self.megabytes:.0f} MB"
        return f"{self.name} ({weight}, {'here already' if self.here else 'will be downloaded'})"


def size_of(name: str) -> Size:
    """Return the size of a CLIP's weights: of the file if it is here, else by its parameters.

    Raises:
        ModelNameError, WeightsError: as `describe`.
    """
    from kdpl.clip.loading import find_weights, outline_clip
    from kdpl.clip.names import resolve

    file = find_weights(name)
    if file is not None:
        return Size(name, file.stat().st_size / 1e6, True)
    each = 2 if resolve(name).kind == "openai" else 4  # bytes of a parameter, as published
    count = sum(p.numel() for p in outline_clip(name).model.parameters())
    return Size(name, each * count / 1e6, False)


def downloads(sizes: list[Size]) -> str:
    """Return what will be downloaded, and which smaller pair would do; empty if all is here."""
    missing = [size for size in sizes if not size.here]
    if not missing:
        return ""
    total = sum(size.megabytes for size in missing)
    smaller = [size_of(name) for name in SMALLER]
    less = sum(size.megabytes for size in smaller if not size.here)
    words = f"{total / 1000:.1f} GB" if total >= 1000 else f"{total:.0f} MB"
    if less >= total:
        return words
    return f"{words}; with --student {SMALLER[0]} --teacher {SMALLER[1]} it would be {less:.0f} MB"
