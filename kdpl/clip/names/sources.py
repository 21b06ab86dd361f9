"""Where a CLIP comes from."""

from dataclasses import dataclass


class ModelNameError(ValueError):
    """A name is no CLIP that can be loaded."""


@dataclass(frozen=True)
class Source:
    """Where a CLIP comes from.

    Attributes:
        kind: "openai"; "file", of OpenAI's layout; "open_clip"; "folder", with open_clip's configuration;
            "transformers", a folder with that of transformers.
        architecture: of open_clip.
        tag: of its weights, or "openai" for a file that is declared to be of OpenAI's design; empty if it is not known.
        path: file or folder; empty: to be downloaded.
        file: the weights in the folder, if they were named.
    """

    kind: str
    architecture: str = ""
    tag: str = ""
    path: str = ""
    file: str = ""
