"""The lengths and depths of prompts that a CLIP takes."""

from kdpl.clip.names import Architecture


def check_context(node: str, key: str, length: int, architecture: Architecture, name: str, words: bool) -> None:
    """Refuse a number of context tokens, `<node>.<key>`, that the CLIP `name` cannot take.

    Args:
        words: the context begins as words, whose number counts in place of `length`.

    Raises:
        ValueError: both values are named.
    """
    if length < 1:
        raise ValueError(f"{node}.{key} is {length}, expected at least 1 token.")
    if key.endswith("VISION"):
        return
    if architecture.no_text_context:
        raise ValueError(
            f"{node} learns text context, {key} {length}, which MODEL.BACKBONE.NAME '{name}' cannot take: "
            f"{architecture.no_text_context} Choose the trainer VPT, or another CLIP, such as 'ViT-B/32'."
        )
    if not words and length >= architecture.context_length - 2:
        raise ValueError(
            f"{node}.{key} is {length}, but MODEL.BACKBONE.NAME '{name}' takes {architecture.context_length} "
            "tokens, the class name and its ends among them: set it lower."
        )


def check_depth(node: str, key: str, depth: int, architecture: Architecture, name: str) -> None:
    """Refuse a number of layers with prompts, `<node>.<key>`, that the CLIP `name` does not have.

    Raises:
        ValueError: both values are named.
    """
    if not architecture.is_vit:
        raise ValueError(
            f"{node} learns visual prompts and needs a ViT, but MODEL.BACKBONE.NAME '{name}' is a ResNet "
            "or another tower. Choose a ViT such as 'ViT-B/32', or the trainer CoOp or CoCoOp."
        )
    layers = architecture.text_depth if key.endswith("TEXT") else architecture.vision_depth
    if key == "PROMPT_DEPTH":
        layers = min(layers, architecture.text_depth)
    if not key.endswith("VISION") and depth > 1 and architecture.no_deep_text:
        raise ValueError(f"{node}.{key} is {depth}, but MODEL.BACKBONE.NAME '{name}': {architecture.no_deep_text}")
    if not 1 <= depth <= layers:
        raise ValueError(
            f"{node}.{key} is {depth}, but MODEL.BACKBONE.NAME '{name}' has {layers} layers: expected 1 to {layers}."
        )
