"""Bundles on the Hugging Face Hub: `kdpl.load("hf-hub:OWNER/NAME")` and `kdpl push OUT OWNER/NAME`.

Of a repository only `prompts.safetensors` is ever downloaded, whatever else is in it. The token is that of `HF_TOKEN` or of
`hf auth login`; `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` have their usual meaning.
"""

import hashlib
import os
import re
import sys
from pathlib import Path

from kdpl.bundle import Bundle, BundleError, read_bundle
from kdpl.bundle.card import FILE_NAME, model_card
from kdpl.clip.names import ModelNameError, resolve
from kdpl.common.environment import VERSION
from kdpl.common.files import NO_ROOM, naming_full_disks
from kdpl.common.messages import short_reason

PREFIX = "hf-hub:"
CARD = "README.md"  # the Hub's name of a card
LARGEST = 2**28  # bytes of a bundle that is downloaded; the largest learner's prompts for ViT-L/14 take 2**25
OPENAI_REPOSITORIES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
SECONDS = 20  # until the Hub counts as unreachable


class HubError(BundleError):
    """A bundle cannot be downloaded from the Hub, or not be uploaded."""


def read(path: str | os.PathLike) -> Bundle:
    """Read a bundle from its folder, its file, or the Hub, "hf-hub:OWNER/NAME" or "hf-hub:OWNER/NAME@REVISION".

    Raises:
        BundleError: as `read_bundle`.
        HubError: as `download`.
    """
    name = os.fspath(path)
    if not isinstance(name, str) or not name.startswith(PREFIX):
        return read_bundle(path)
    try:
        return read_bundle(download(name))
    except HubError:
        raise
    except BundleError as error:
        raise HubError(f"'{name}' cannot be used: {error}") from None


def download(name: str) -> Path:
    """Return the file of a bundle on the Hub, from the cache if it is the newest there.

    Without network the cached file is used, and a line says so; with `HF_HUB_OFFLINE=1` the cached file alone is looked for.

    Raises:
        HubError: name, revision or file are not there, access is denied, the Hub cannot be reached and nothing is cached, or
            the content differs from its digest.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    _check_name(repository, f"'{name}'", PREFIX)
    if at and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision):
        raise HubError(f"'{name}' asks for the revision '{revision}', expected a branch, a tag or a commit.")
    chosen = revision or "main"
    _check_token()
    reached = False
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        # One question first: the client's download retries for most of a minute without network.
        url = hf_hub_url(repository, FILE_NAME, revision=chosen)
        _check_size(get_hf_file_metadata(url, timeout=SECONDS).size, repository)
        reached = True
        file = hf_hub_download(repository, FILE_NAME, revision=chosen, library_name="kdpl", library_version=VERSION)
    except HubError:
        raise
    except Exception as error:  # those of the HTTP client differ between versions of huggingface_hub
        with naming_full_disks(constants.HF_HUB_CACHE):
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
        if reached:
            raise HubError(
                f"{constants.ENDPOINT} was reached, but '{name}' did not arrive whole ({short_reason(error)}): load it again."
            ) from error
        if answer := _refusal(error, repository, revision):
            raise HubError(answer) from error
        cached = try_to_load_from_cache(repository, FILE_NAME, revision=chosen)
        offline = constants.HF_HUB_OFFLINE
        if not isinstance(cached, str):
            way = "unset it" if offline else "check the network"
            raise HubError(
                f"'{name}' is not in the cache ({constants.HF_HUB_CACHE}), and {_unreachable(error)}: {way}, or copy "
                f"{FILE_NAME} from elsewhere and load that."
            ) from error
        if not offline:
            print(f"{_unreachable(error)}: '{name}' is the cached one, {Path(cached).parent.name[:12]}", file=sys.stderr)
        file = cached
    _check_digest(Path(file))
    return Path(file)


def push(path: str | os.PathLike, repository: str, private: bool = False, license: str = "unknown") -> str:
    """Upload a bundle and its card to a model repository of the Hub, which is created if missing, and return its address.

    Args:
        path: the output folder of a training, or its `prompts.safetensors`.
        repository: "OWNER/NAME".
        private: create it as a private one.
        license: of the prompts, by the Hub's names.

    Raises:
        BundleError: as `read_bundle`.
        HubError: there is no token or no permission, the Hub cannot be reached, or the repository holds something else or
            is public although `private` is asked for; then nothing is uploaded.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    bundle = read_bundle(path)
    _check_name(repository, f"'{repository}'", "")
    if not _check_token():
        raise HubError("There is no token for the Hub: run `hf auth login`, or set HF_TOKEN to one that may write.")
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"'{repository}' was not uploaded: HF_HUB_OFFLINE is set. Unset it.")
    card = model_card(bundle, f"---\n{_metadata(bundle, repository, license)}\n---", f"{PREFIX}{repository}")
    api = HfApi(library_name="kdpl", library_version=VERSION)
    address = f"{api.endpoint}/{repository}"
    file = Path(path, FILE_NAME) if Path(path).is_dir() else Path(path)
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        there = api.model_info(repository, timeout=SECONDS)
        files = {item.rfilename for item in there.siblings or ()} - {".gitattributes"}
        if files and FILE_NAME not in files:
            raise HubError(
                f"'{repository}' holds something else ({', '.join(sorted(files)[:3])}) and no {FILE_NAME}: choose another name."
            )
        if private and not there.private:
            raise HubError(
                f"'{repository}' is there already and public: choose another name, or make it private at {address}/settings."
            )
        added = [CommitOperationAdd(FILE_NAME, str(file)), CommitOperationAdd(CARD, card.encode())]
        api.create_commit(repository, added, commit_message=f"Prompts for {bundle.backbone}")
    except HubError:
        raise
    except Exception as error:
        status = _status(error)
        if status in (401, 403, 404):
            raise HubError(
                f"The token may not write to '{repository}' ({api.endpoint} answers {status}): check the owner's name, and use "
                "a token with permission to write (`hf auth login` or HF_TOKEN)."
            ) from error
        what = f"{api.endpoint} answers {status} ({short_reason(error)})" if status else _unreachable(error)
        raise HubError(f"'{repository}' was not uploaded: {what}. Try again once this is solved.") from error
    return address


def _check_size(size: int | None, repository: str) -> None:
    if size is None:
        raise HubError(f"{FILE_NAME} of '{repository}' comes without its size: not downloaded.")
    if size > LARGEST:
        raise HubError(f"{FILE_NAME} of '{repository}' has {size:,} bytes, prompts at most {LARGEST:,}: not downloaded.")


def _check_name(repository: str, given: str, prefix: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    sound = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        sound = None
    if not sound:
        raise HubError(f"{given} names no repository of the Hub: expected {prefix}OWNER/NAME.")


def _check_token() -> bool:
    """Return whether there is a token; one that no header can hold is refused here, since the client would print it."""
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("The token for the Hub has spaces or control characters in it: set HF_TOKEN again, or `hf auth login`.")
    return token is not None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return f"{constants.ENDPOINT} cannot be reached ({short_reason(error)})"


def _refusal(error: Exception, repository: str, revision: str) -> str:
    """Return why the Hub does not give the file; empty if it gave no answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{repository}"
    status = _status(error)
    if isinstance(error, LocalEntryNotFoundError) or status is None or status >= 500:
        return ""
    if isinstance(error, GatedRepoError):
        return f"'{repository}' is given to those who have asked for it: ask at {page}, and log in with `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return f"'{repository}' has no revision '{revision}': see {page}/commits for those there are."
    if isinstance(error, EntryNotFoundError):
        return f"'{repository}' has no {FILE_NAME}, so it holds no prompts of kdpl: see {page}/tree/main."
    if status in (401, 403, 404):
        return (
            f"There is no '{repository}' at {constants.ENDPOINT}, or it is private: check the name, or log in with a "
            f"token that may read it (`hf auth login` or HF_TOKEN; the answer was {status})."
        )
    return f"{constants.ENDPOINT} does not give '{repository}' ({short_reason(error)}): try again later."


def _check_digest(file: Path) -> None:
    """Compare a cached file with its name there, which is its SHA-256 or, for small files, git's digest.

    Raises:
        HubError: they differ.
    """
    if not file.is_symlink():  # a file system without links: the cache has no such name
        return  # and its answer was checked
    expected, content = Path(os.readlink(file)).name, file.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    found = {64: hashlib.sha256(content), 40: git}.get(len(expected))
    if found is None or found.hexdigest() != expected:
        raise HubError(f"'{file}' is damaged: its content differs from its digest. Delete '{file.resolve()}' and load again.")


def _metadata(bundle: Bundle, repository: str, license: str) -> str:
    """Return what the Hub shows and searches by, in YAML: licence, CLIP, and the measured accuracies in percent."""
    from huggingface_hub import EvalResult, ModelCardData

    measured = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"\W+", "_", result["dataset"]).strip("_") or "images",
            dataset_name=result["dataset"] or "images",
            dataset_config=f"{result['classes']} classes ({result['num_classes']})",
            dataset_split=result["split"],
            metric_type=kind,
            metric_name=f"{kind} (%)",
            metric_value=round(result[key], 2),
        )
        for result in bundle.results
        for kind, key in (("accuracy", "accuracy"), ("f1", "macro_f1"))
    ]
    return ModelCardData(
        library_name="kdpl",
        pipeline_tag="image-classification",
        tags=["clip", "prompt-learning", "zero-shot-image-classification", bundle.variant.lower()],
        license=license,
        base_model=_base_model(bundle.backbone),
        model_name=repository.partition("/")[2],
        eval_results=measured or None,
    ).to_yaml()


def _base_model(backbone: str) -> str | None:
    """Return the Hub's repository of a CLIP; None if there is none that is known."""
    if backbone in OPENAI_REPOSITORIES:
        return OPENAI_REPOSITORIES[backbone]
    try:
        source = resolve(backbone)
    except ModelNameError:  # a path of another machine
        return None
    if source.kind != "open_clip" or not source.tag:
        return None
    import open_clip

    parts = (open_clip.get_pretrained_cfg(source.architecture, source.tag).get("hf_hub") or "").split("/")
    return "/".join(parts[:2]) if len(parts) > 1 else None
