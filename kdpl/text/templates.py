"""Hand-written sentences about a class name."""

from collections.abc import Sequence

DEFAULT = "a photo of a {}."

# The teacher's sentence for each data set, as published (CoOp, arXiv:2109.01134, and KDPL, arXiv:2407.03056).
BY_DATASET = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


def template_for(dataset: str, override: str = "") -> str:
    """Return the sentence for a data set: `override` (DATASET.TEMPLATE) if given, else the published one.

    Raises:
        ValueError: the override does not hold `{}` exactly once.
    """
    if override and override.count("{}") != 1:
        raise ValueError(f"DATASET.TEMPLATE '{override}' must hold one '{{}}' for the class name, as in '{DEFAULT}'.")
    return override or BY_DATASET.get(dataset, DEFAULT)


def fill(template: str, names: Sequence[str]) -> list[str]:
    """Put each class name into a template; underscores become spaces."""
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def imagenet_templates(count: int | None = None) -> list[str]:
    """Return the first `count` (default: all 80) of open_clip's OPENAI_IMAGENET_TEMPLATES, with `{}` for the name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:count]]
