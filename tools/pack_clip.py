"""Pack a small CLIP's state dict (OpenAI's layout) into the compact file that `kdpl.clip.load_clip` reads.

    python tools/pack_clip.py student.pt student.safetensors

Weights become fp16. Of the token table only the rows that are not zero are kept, with their ids under
`token_embedding.used`, and of the positions only the first 20.
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save

from kdpl.common.files import atomic_write

POSITIONS = 20


def pack(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the compact form of a state dict whose unused tokens and positions are zero.

    Args:
        state_dict: OpenAI's layout, with a token table (49408, w_t) and positions (77, w_t).

    Returns:
        The same keys, floating-point arrays in fp16, and `token_embedding.used` (n,) int32.

    Raises:
        ValueError: a position from the 21st on is not zero.
    """
    table, positions = state_dict["token_embedding.weight"], state_dict["positional_embedding"]
    if positions[POSITIONS:].any():
        raise ValueError(f"Only {POSITIONS} positions are kept, but a later one of positional_embedding is not zero.")
    used = table.any(dim=1).nonzero()[:, 0]
    compact = state_dict | {"token_embedding.weight": table[used], "positional_embedding": positions[:POSITIONS]}
    half = {k: v.half() if v.ndim and v.is_floating_point() else v for k, v in compact.items()}
    return {k: v.contiguous() for k, v in half.items()} | {"token_embedding.used": used.int()}


def write(state_dict: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Write the compact form of `state_dict` to `path`."""
    with atomic_write(path) as file:
        file.write(save(pack(state_dict)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("state", type=Path, help="state dict written by torch.save")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    args = parser.parse_args()
    write(torch.load(args.state, map_location="cpu", weights_only=True), args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
