"""The launch scripts: shell that shellcheck passes, a manifest with what it needs, quoting."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import PATIENCE_SEC

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
SHELL = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=places)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_scripts_without_arguments_end_with_a_message(script):
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr


def stand_in(folder, name, text):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def run(script, folder, *arguments, **environment):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), **environment},
        timeout=PATIENCE_SEC,
    )


def test_tpu_pod_passes_arguments_whole_to_every_host(tmp_path):
    # In place of gcloud: runs what each host's shell would be given, with python3 printing.
    stand_in(tmp_path, "gcloud", 'echo "${@:1:8}"; eval "${@: -1}"')
    stand_in(tmp_path, "python3", 'printf \'<%s>\' "$ESCHERJAX_EXPECTED_DEVICES" "$@"')
    (tmp_path / "escherjax").mkdir()
    done = run(
        "tpu_pod.sh",
        tmp_path,
        "--config",
        "a b.py",
        "--config.unet.attention=(True,)",
        WORKDIR="/mnt/my runs",
        EXPECTED_DEVICES="16",
        TPU_NAME="pod",
        ZONE="z",
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "compute tpus tpu-vm ssh pod --zone z --worker=all"
    assert second == (
        "<16><-m><escherjax.train><--workdir></mnt/my runs><--config><a b.py>"
        "<--config.unet.attention=(True,)>"
    )


RUN = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("up", flush=True)
signal.pause()
"""


def test_tpu_pod_stops_the_run_of_its_work_directory_and_waits_for_its_end(tmp_path):
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed")
    # In place of gcloud: a shell for the host, as ssh starts one. In place of training: a program
    # of that name, started by the script itself, that ends at SIGTERM as a saved run does.
    stand_in(tmp_path, "gcloud", 'exec bash -c "${@: -1}"')
    package = tmp_path / "escherjax" / "escherjax"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(RUN)
    runs = {
        name: subprocess.Popen(
            ["bash", LAUNCH / "tpu_pod.sh", "--config", "a.py"],
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "WORKDIR": str(tmp_path / name),
            },
        )
        for name in ("my run (1)", "my run (1) too")
    }
    try:
        assert [run.stdout.readline() for run in runs.values()] == ["up\n", "up\n"]
        workdir = str(tmp_path / "my run (1)")
        done = run("tpu_pod.sh", tmp_path, "--stop", WORKDIR=workdir)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(": stopped\n")
        assert runs["my run (1)"].wait(10) == 75
        again = run("tpu_pod.sh", tmp_path, "--stop", WORKDIR=workdir)
        assert again.stdout.endswith(f": no run in {workdir}\n")
        assert runs["my run (1) too"].poll() is None
    finally:
        other = run("tpu_pod.sh", tmp_path, "--stop", WORKDIR=str(tmp_path / "my run (1) too"))
        for process in runs.values():
            process.kill()
    assert other.stdout.endswith(": stopped\n")
    assert run("tpu_pod.sh", tmp_path, "--stop", "now").returncode == 2


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (2, False)])
def test_slurm_requeues_a_run_that_saved_at_a_signal(tmp_path, code, requeued):
    stand_in(tmp_path, "srun", f"exit {code}")
    stand_in(tmp_path, "scontrol", 'echo "$@"')
    done = run(
        "slurm.sbatch",
        tmp_path,
        "--config",
        "a.py",
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_ID="9",
    )
    assert done.returncode == code
    assert done.stdout == ("requeue 9\n" if requeued else "")


def test_slurm_leaves_tasks_that_are_still_ending_alone(tmp_path):
    # Slurm 22.05 with --kill-on-bad-exit=1: a task ending 3 s after the first one's 75 is killed,
    # srun's code is 143 and the job FAILED; with 0 it is 75. A site's slurm.conf may say 1, or a
    # WaitTime of seconds, so that both must be named.
    stand_in(tmp_path, "srun", 'printf "%s\\n" "$@"')
    done = run(
        "slurm.sbatch",
        tmp_path,
        "--config",
        "a.py",
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_ID="9",
    )
    assert done.returncode == 0
    options = done.stdout.split("python3")[0].split()
    assert "--kill-on-bad-exit=0" in options
    assert "--wait=600" in options


def test_slurm_starts_a_task_for_each_gpu():
    options = " ".join(
        line.removeprefix("#SBATCH ")
        for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH ")
    ).split()
    values = dict(option.split("=", 1) for option in options if "=" in option)
    assert values["--ntasks-per-node"] == values["--gres"].removeprefix("gpu:")


def test_the_manifest_is_a_jobset_that_agrees_with_itself():
    yaml = pytest.importorskip("yaml")
    (manifest,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]
    assert hosts["completionMode"] == "Indexed"
    assert hosts["parallelism"] == hosts["completions"]
    pod = hosts["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert int(rows) * int(columns) == chips * hosts["completions"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["ESCHERJAX_EXPECTED_DEVICES"] == str(int(rows) * int(columns))
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_manifest_has_only_fields_that_kubernetes_and_jobset_know():
    yaml = pytest.importorskip("yaml")
    jobset = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    (manifest,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    # The model checks types; fields that it does not know do not come back.
    kept = jobset.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    assert list(_lost(manifest, kept)) == []


def _lost(given, kept, path="manifest"):
    """Paths of what is in `given` and not, or otherwise, in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            yield from _lost(value, kept.get(name), f"{path}.{name}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif given != kept:
        yield f"{path}: {given!r}"
