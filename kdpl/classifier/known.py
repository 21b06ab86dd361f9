"""The cache of image features: by image file, in a file for each image tower."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import PIL
import torch

from kdpl.common.files import cache_dir
from kdpl.common.tensor_files import FeatureFile, update_digest

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier


def known_features(classifier: "Classifier") -> FeatureFile:
    """Return the normalised image features that earlier predictions have computed, by `file_key` of the image."""
    clip, bundle = classifier.clip, classifier.bundle
    prompts = hashlib.sha256()
    if not classifier.encoder.images_are_frozen:
        prompts.update(bundle.variant.encode())
        update_digest(prompts, bundle.parameters)
    meaning = {
        "CLIP": clip.identity,
        "image prompts": prompts.hexdigest(),
        "preprocessing": dataclasses.asdict(bundle.preprocessing),
        "precision": [str(clip.dtype), str(clip.autocast_dtype), str(clip.frozen_autocast_dtype)],
        "device": clip.device.type,
        "libraries": [PIL.__version__, torch.__version__],
        "least": classifier.decoder.least,
    }
    return FeatureFile(cache_dir() / "image_features", meaning, clip.embed_dim)
