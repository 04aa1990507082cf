"""Weights from the hub and to it, over HTTP against a server of our own on this machine."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from escherjax.errors import UserError
from escherjax.weights import hub
from tests.helpers.fake_hub import COMMIT, FakeHub

huggingface_hub = pytest.importorskip("huggingface_hub")

TENSORS = save({"a": np.arange(3, dtype=np.float32)})
FILES = {
    "model_index.json": b"{}",
    "escherjax.json": b'{"format": 1}',
    "unet/config.json": b'{"in_channels": 4}',
    "unet/diffusion_pytorch_model.safetensors": TENSORS,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": TENSORS[::-1],
    "scheduler/scheduler_config.json": b"{}",
    "image_encoder/model.safetensors": TENSORS * 2,
}
UNWANTED = {
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "pipeline.py": b"import os",
    "safety_checker/model.safetensors": TENSORS,
    "v1-5-pruned.safetensors": TENSORS,
}


@pytest.fixture
def server():
    with FakeHub() as server:
        yield server


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def requested(server, text):
    return [path for _, path in server.requests if text in path]


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_a_pipeline_comes_from_the_hub_byte_for_byte_without_pickles_or_programs(server, tmp_path):
    server.add("someone/eschernet-6dof", {**FILES, **UNWANTED})
    where = {"endpoint": server.endpoint, "cache_dir": tmp_path}
    folder = hub.resolve("someone/eschernet-6dof", **where)
    assert files_in(folder) == FILES
    for name in UNWANTED:
        assert not requested(server, name)
    fetched = len(requested(server, "/resolve/"))
    assert hub.resolve("someone/eschernet-6dof", **where) == folder
    assert len(requested(server, "/resolve/")) == fetched  # the second time from the cache


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            "unet",
            {
                "model_index.json",
                "escherjax.json",
                "scheduler/scheduler_config.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
            },
        ),
        ("vae", {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}),
        ("image_encoder", {"image_encoder/model.safetensors"}),
    ],
)
def test_only_the_part_in_use_is_fetched(server, tmp_path, part, expected):
    server.add("someone/model", {**FILES, **UNWANTED})
    folder = hub.resolve("someone/model", part, endpoint=server.endpoint, cache_dir=tmp_path)
    assert files_in(folder).keys() == expected


def test_an_encoder_may_lie_at_the_top_of_its_repository(server, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": TENSORS}
    server.add("someone/convnextv2", {**files, "pytorch_model.bin": b"pickle"})
    folder = hub.resolve(
        "someone/convnextv2", "image_encoder", endpoint=server.endpoint, cache_dir=tmp_path
    )
    assert files_in(folder) == files


def test_a_revision_is_asked_for(server, tmp_path):
    server.add("someone/model", FILES, branches=["dev"])
    where = {"endpoint": server.endpoint, "cache_dir": tmp_path}
    assert hub.resolve("someone/model@dev", **where).name == COMMIT
    assert requested(server, "/revision/dev")
    with pytest.raises(UserError, match="no such repository or revision.*HTTP 404"):
        hub.resolve("someone/model@other", **where)


@pytest.mark.parametrize("name", ["runs/demo", "someone/model@dev"])
def test_a_local_path_goes_before_the_hub(server, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    server.add(name.partition("@")[0], FILES)
    (tmp_path / name).mkdir(parents=True)
    assert str(hub.resolve(name, endpoint=server.endpoint, cache_dir=tmp_path / "cache")) == name
    assert server.requests == []


@pytest.mark.parametrize("name", ["model", "/a/b", "./a", "../a", "a/b/c", "~/a", "a/b@", "-a/b"])
def test_what_cannot_be_a_hub_id_stays_a_path(server, tmp_path, name):
    where = {"endpoint": server.endpoint, "cache_dir": tmp_path}
    assert str(hub.resolve(name, **where)) == name.removeprefix("./")
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "valid access token, or there is no such"), (403, "does not allow"), (500, "refused")],
)
def test_refused_downloads_say_why(server, tmp_path, status, reason):
    server.add("someone/model", FILES)
    server.refuse = status
    with pytest.raises(UserError, match=f"someone/model is not a local folder.*{reason}.*{status}"):
        hub.resolve("someone/model", endpoint=server.endpoint, cache_dir=tmp_path)


def test_a_missing_repository_and_a_missing_network_are_told_apart(server, tmp_path):
    with pytest.raises(UserError, match="no such repository or revision"):
        hub.resolve("someone/absent", endpoint=server.endpoint, cache_dir=tmp_path)
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    with pytest.raises(
        UserError, match="someone/absent is not a local folder.*Check the name, the ne"
    ):
        hub.resolve("someone/absent", endpoint=nobody, cache_dir=tmp_path)


def test_without_huggingface_hub_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # what import makes of its absence
    for call in (lambda: hub.resolve("a/b"), lambda: hub.push(write(tmp_path, FILES), "a/b")):
        with pytest.raises(UserError, match=r"pip install 'escherjax\[hub\]'"):
            call()


def test_a_pushed_folder_arrives_byte_for_byte_and_comes_back(server, tmp_path):
    folder = write(tmp_path / "out", FILES)
    url = hub.push(
        folder, "me/model", private=True, message="step 7", endpoint=server.endpoint, token="hf_w"
    )
    assert url == f"{server.endpoint}/me/model"
    assert server.repos["me/model"] == {"files": FILES, "private": True, "branches": {"main"}}
    assert server.commits == ["step 7"]
    where = {"endpoint": server.endpoint, "cache_dir": tmp_path / "cache"}
    assert files_in(hub.resolve("me/model", **where)) == FILES


def test_large_files_go_through_lfs(tmp_path, monkeypatch):
    """Xet, huggingface_hub's own way for large files, needs a server of its own; LFS does not."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with FakeHub(lfs_ending=".safetensors") as server:
        hub.push(write(tmp_path, FILES), "me/model", endpoint=server.endpoint, token="hf_w")
        assert server.repos["me/model"]["files"] == FILES
        assert len(server.blobs) == 3


def test_a_branch_is_made_where_there_is_none(server, tmp_path):
    url = hub.push(
        write(tmp_path, FILES), "me/model", revision="v2", endpoint=server.endpoint, token="hf_w"
    )
    assert url.endswith("/me/model/tree/v2") and server.repos["me/model"]["branches"] >= {"v2"}
    assert requested(server, "/commit/v2")


def test_nothing_private_is_pushed_to_a_public_repository(server, tmp_path):
    server.add("me/model")
    folder = write(tmp_path, FILES)
    with pytest.raises(UserError, match="exists and is public"):
        hub.push(folder, "me/model", private=True, endpoint=server.endpoint, token="hf_w")
    assert server.repos["me/model"]["files"] == {} and server.commits == []
    hub.push(folder, "me/model", endpoint=server.endpoint, token="hf_w")
    assert server.repos["me/model"]["files"] == FILES


@pytest.mark.parametrize(
    ("token", "refuse_commit", "reason"),
    [
        ("hf_reader", None, "a token with the right to write"),
        ("hf_w", 401, "valid access token"),
        ("hf_w", 404, "no such repository"),
        ("hf_w", 409, "changed at the same time"),
    ],
)
def test_refused_uploads_say_why(server, tmp_path, token, refuse_commit, reason):
    server.refuse_commit = refuse_commit
    with pytest.raises(UserError, match=f"uploading to me/model: .*{reason}"):
        hub.push(write(tmp_path, FILES), "me/model", endpoint=server.endpoint, token=token)


def test_an_upload_without_token_or_files_or_name_is_refused_unsent(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        hub.push(write(tmp_path / "out", FILES), "me/model", endpoint=server.endpoint)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(UserError, match="must be a folder with files"):
            hub.push(tmp_path / folder, "me/model", endpoint=server.endpoint, token="hf_w")
    for name in ("model", "a/b/c", "a/b@dev"):
        with pytest.raises(UserError, match="must be owner/name"):
            hub.push(tmp_path / "out", name, endpoint=server.endpoint, token="hf_w")
    assert server.requests == []


def test_load_takes_a_hub_id_and_its_name_says_the_camera_encoding(server, tmp_path, golden_dir):
    folder = golden_dir / "eschernet-4dof-tiny"
    files = {k: v for k, v in files_in(folder).items() if k.endswith((".json", ".safetensors"))}
    server.add("someone/eschernet-4dof", files)
    program = (
        "import json, escherjax; from escherjax.weights import identity\n"
        "name, folder = identity.pin('someone/eschernet-4dof'); p = escherjax.load(name)\n"
        "print(json.dumps([p.model.cape, float(p.params['unet']['conv_in']['bias'].sum())]))\n"
        "assert (folder / 'unet').is_dir()"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(hub.__file__)) + "/..",
    )
    assert done.returncode == 0, done.stderr
    cape, total = json.loads(done.stdout)
    from safetensors.numpy import load_file

    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")["conv_in.bias"]
    assert cape == "4dof" and total == pytest.approx(float(stored.sum()), abs=1e-6)
