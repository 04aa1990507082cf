"""Downloads weights from the Hugging Face Hub and uploads them, with huggingface_hub's cache.

A hub id is `owner/name`, or `owner/name@revision` for a branch, tag or commit. A local folder of
the same name always goes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from escherjax.errors import UserError

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_INSTALL = "pip install 'escherjax[hub]'"

# What is fetched: JSON and safetensors of the parts in use, never pickles or programs.
_PARTS = ("unet", "unet_ema", "vae", "image_encoder", "scheduler")
_ENTIRE = ("model_index.json", "escherjax.json") + tuple(
    f"{part}/*.{ending}" for part in _PARTS for ending in ("json", "safetensors")
)
_PATTERNS = {
    None: _ENTIRE,
    "unet": tuple(p for p in _ENTIRE if not p.startswith(("vae/", "image_encoder/"))),
    "vae": ("vae/*.json", "vae/*.safetensors"),
    # ConvNeXtV2's own repositories keep their files at the top, without a folder.
    "image_encoder": (
        "image_encoder/*.json",
        "image_encoder/*.safetensors",
        "config.json",
        "model*.safetensors",
        "model*.safetensors.index.json",
    ),
}


def resolve(
    weights: str | Path,
    part: str | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The local path of weights, downloaded first where they are a hub id.

    Only JSON and safetensors files are fetched.

    Args:
        weights: a path, or `owner/name[@revision]`. What exists here is taken as a path, and so is
            what cannot be a hub id, whether it exists or not.
        part: "unet", "vae" or "image_encoder" to fetch only that; None for a pipeline folder.
        endpoint: other than huggingface_hub's own.
        cache_dir: other than huggingface_hub's own.

    Raises:
        UserError: huggingface_hub is not installed, or the hub refused.
    """
    path = Path(weights)
    found = _HUB_ID.fullmatch(str(weights))
    if path.exists() or found is None:
        return path
    repo_id, revision = found.groups()
    hub = _huggingface_hub(f"{weights} is not a local folder; to fetch it as a hub id")
    with _explained(f"{weights} is not a local folder, and as a hub id", hub):
        folder = hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(_PATTERNS[part]),
            endpoint=endpoint,
            cache_dir=cache_dir,
        )
    return Path(folder)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload weights",
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a folder to the hub and creates the repository where there is none.

    Args:
        folder: local, not empty.
        repo_id: `owner/name`.
        private: of a repository that is created; one that exists and is public is refused.
        revision: a branch, created where there is none; None for the main one.
        message: of the commit.
        endpoint: other than huggingface_hub's own.
        token: other than that of HF_TOKEN or `hf auth login`.

    Returns:
        The URL of the repository.

    Raises:
        UserError: the folder is empty, huggingface_hub is not installed, there is no token, or the
            hub refused.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"{folder} must be a folder with files to be uploaded.")
    hub = check_upload(repo_id, token)
    api = hub.HfApi(endpoint=endpoint, token=token)
    with _explained(f"uploading to {repo_id}", hub):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise UserError(
                f"{repo_id} exists and is public, but a private repository was asked for; nothing "
                "was uploaded. Name another, or make that one private first."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
        )
    return f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")


def check_upload(repo_id: str, token: str | None = None) -> ModuleType:
    """Raises UserError where `push` could not even begin; returns huggingface_hub."""
    found = _HUB_ID.fullmatch(repo_id)
    if found is None or found[2]:
        raise UserError(f"hub id must be owner/name, got {repo_id!r}.")
    hub = _huggingface_hub(f"to upload to {repo_id}")
    if not (token or hub.get_token()):
        raise UserError(
            f"Uploading to {repo_id} requires an access token with write access: run `hf auth "
            "login`, or set HF_TOKEN."
        )
    return hub


def _huggingface_hub(purpose: str) -> ModuleType:
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(f"{purpose}, huggingface_hub is required: {_INSTALL}.") from error
    return huggingface_hub


# What an answer of the hub means to the user.
_REFUSALS = {
    401: "the hub wants a valid access token, or there is no such repository: check the name, and "
    "run `hf auth login` or set HF_TOKEN",
    403: "your access token does not allow this; accept the repository's terms on its page, or "
    "take a token with the right to write",
    404: "the hub has no such repository or revision; check the name",
    409: "the repository was changed at the same time; try again",
}


@contextmanager
def _explained(what: str, hub: ModuleType) -> Iterator[None]:
    """Turns every way in which the hub can fail into a UserError that begins with `what`."""
    try:
        yield
    except (OSError, hub.errors.HTTPError, ValueError) as error:
        # huggingface_hub looks in its cache before it gives up; the cause is the hub's answer.
        answer = error.__cause__ or error
        response = getattr(answer, "response", None)
        text = (str(answer).strip() or type(answer).__name__).splitlines()[0]
        if response is not None:
            reason = _REFUSALS.get(response.status_code, "the hub refused the request")
            raise UserError(f"{what}: {reason}. (HTTP {response.status_code}: {text})") from error
        raise UserError(
            f"{what}: {type(answer).__name__}: {text}. Check the name, the network and the disk, "
            "or work with a local folder."
        ) from error
