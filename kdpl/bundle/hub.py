"""Bundles on the Hugging Face Hub: `kdpl.load("hf-hub:OWNER/NAME")` and `kdpl push OUT OWNER/NAME`.

Of a repository only `prompts.safetensors` is ever downloaded, whatever else is in it. The token is that of `HF_TOKEN` or of
`hf auth login`; `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` have their usual meaning.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpl.bundle import FILE_NAME, Bundle, BundleError, read_bundle
from kdpl.bundle.card import model_card
from kdpl.common.environment import VERSION
from kdpl.common.exits import NO_ROOM
from kdpl.common.messages import short_reason

PREFIX = "hf-hub:"
LARGEST = 2**28  # bytes of a bundle that is downloaded; the largest learner's prompts for ViT-L/14 take 2**25
SECONDS = 20  # until the Hub counts as unreachable
REASONS = {  # by huggingface_hub's errors
    "LocalEntryNotFoundError": "it is not in the cache ({cache}): check the network, and unset HF_HUB_OFFLINE if it is set",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set: unset it",
    "GatedRepoError": "it is given to those who have asked for it: ask on its page, and log in with `hf auth login`",
    "RevisionNotFoundError": "it has no such revision: its page lists those there are",
    "EntryNotFoundError": f"it has no {FILE_NAME}, so it holds no prompts of kdpl",
}
REFUSED = (
    "it is not there, or private, or the token may not write there: check the name, or log in (`hf auth login` or HF_TOKEN)"
)


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
    file = download(name)
    try:
        return read_bundle(file)
    except BundleError as error:
        raise HubError(f"{error} Delete '{file}' to download '{name}' again.") from None


def download(name: str) -> Path:
    """Return the file of a bundle on the Hub, from the cache if it is the newest there.

    Without network the cached file is used, and a line says so; with `HF_HUB_OFFLINE=1` the cached file alone is looked for.

    Raises:
        HubError: name, revision or file are not there, access is denied, the file is too large, or the Hub cannot be reached
            and nothing is cached.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    revision, offline = revision or "main", constants.HF_HUB_OFFLINE
    size: int | None = 0
    with _one_line(name, repository):
        try:  # one quick question first: a download retries for most of a minute without network
            url = hf_hub_url(repository, FILE_NAME, revision=revision)
            size = 0 if offline else get_hf_file_metadata(url, timeout=SECONDS).size
        except Exception as error:
            if (_status(error) or 500) < 500:
                raise
            print(f"{constants.ENDPOINT} cannot be reached ({short_reason(error)}): looking in the cache", file=sys.stderr)
            offline = True
        if size is None or size > LARGEST:
            raise HubError(f"{FILE_NAME} of '{name}' has {size or 'an unknown number of'} bytes, prompts at most {LARGEST:,}.")
        about = f"kdpl/{VERSION}"
        return Path(hf_hub_download(repository, FILE_NAME, revision=revision, local_files_only=offline, user_agent=about))


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
    from huggingface_hub import HfApi, get_token

    bundle, api = read_bundle(path), HfApi(library_name="kdpl", library_version=VERSION)
    address = f"{api.endpoint}/{repository}"
    with _one_line(repository, repository):
        if get_token() is None:
            raise HubError("There is no token for the Hub: run `hf auth login`, or set HF_TOKEN to one that may write.")
        api.create_repo(repository, private=private or None, exist_ok=True)
        there = api.model_info(repository, timeout=SECONDS)
        files = {item.rfilename for item in there.siblings or ()} - {".gitattributes"}
        if files and FILE_NAME not in files:  # the rule of all outputs (kdpl/common/outputs.py)
            raise HubError(
                f"'{repository}' holds something else ({', '.join(sorted(files)[:3])}) and no {FILE_NAME}: choose another name."
            )
        if private and not there.private:
            raise HubError(
                f"'{repository}' is there already and public: choose another name, or make it private at {address}/settings."
            )
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(Path(path, FILE_NAME) if Path(path).is_dir() else path, Path(folder, FILE_NAME))
            Path(folder, "README.md").write_text(model_card(bundle, f"{PREFIX}{repository}", license), encoding="utf-8")
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Prompts for {bundle.backbone}")
    return address


@contextmanager
def _one_line(name: str, repository: str) -> Iterator[None]:
    """Raise whatever goes wrong with a repository inside as a HubError of one line that says what to do."""
    from huggingface_hub import constants, get_token

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII):
        raise HubError(f"'{name}' names no repository of the Hub: expected OWNER/NAME, in kdpl.load {PREFIX}OWNER/NAME.")
    if not re.fullmatch(r"[\x21-\x7e]*", get_token() or ""):  # the client would print one that no header can hold
        raise HubError("The token for the Hub has spaces or control characters in it: set HF_TOKEN again, or `hf auth login`.")
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # of many kinds: the HTTP clients of huggingface_hub's versions differ
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            error.filename = error.filename or constants.HF_HUB_CACHE
            raise
        kinds = [kind.__name__ for kind in type(error).__mro__]
        reason = next((REASONS[kind] for kind in kinds if kind in REASONS), "").format(cache=constants.HF_HUB_CACHE)
        if not reason:
            reason = REFUSED if _status(error) in (401, 403, 404) else f"{short_reason(error)}. Try again later"
        raise HubError(f"'{name}' at {constants.ENDPOINT}: {reason}.") from error


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
