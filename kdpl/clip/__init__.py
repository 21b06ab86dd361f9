"""CLIPs: names, loading, precision, and the towers that the prompted passes run."""

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.loading import describe, load_clip, outline_clip
from kdpl.clip.model import Clip, similarity_logits
from kdpl.clip.names import Architecture, ModelNameError
from kdpl.clip.weights import WeightsError

__all__ = [
    "Architecture",
    "Clip",
    "ModelNameError",
    "UnsupportedTowerError",
    "WeightsError",
    "describe",
    "load_clip",
    "outline_clip",
    "similarity_logits",
]
