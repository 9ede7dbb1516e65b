"""Several processes, one training: the same batches, the same weights, and named causes when one of them fails."""

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels
from eco_fast.training.run_folder import RunFolder
from tests.helpers import PROCESSES, become_rank, free_port, write_crops_of

pytestmark = pytest.mark.slow

STEPS = 50
RECIPE = f"""
[data]
train = ["hr"]
validation = ["hr/0.png"]
patch = 8
loader = "plain"
[model]
features = 8
blocks = 1
[objective]
name = "vanilla"
[optimizer]
learning_rate = 1e-4
clip_value = 0.1
spike_factor = 5.0
[train]
steps = {STEPS}
batch_size = 7
log_every = 1
validate_every = 25
checkpoint_every = 10
device = "cpu"
compile = false
"""
MUON = ("--optimizer.name", "muon", "--optimizer.learning_rate", "1e-3")
SCRIPT = """
import os, signal, socket, sys
from datetime import timedelta
from pathlib import Path
import torch
from torch.distributed import distributed_c10d
from eco_fast.cli.main import main
from eco_fast.training import loop
from eco_fast.utils import distributed

torch.set_num_threads(1)
rank, fault = int(os.environ.get("RANK", "0")), os.environ.get("FAULT", "")
if fault == "apart":  # machines that share no disk
    os.chdir(f"machine-{rank}")
if fault == "own disks":
    os.environ["LOCAL_RANK"] = "0"
if fault == "loopback":
    socket.gethostname = lambda: f"127.0.0.{1 + rank}"
first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
awake, wake = os.pipe()  # a signal writes a byte
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)

class Step(loop.TrainStep):
    def __call__(self, batch):
        global stopped
        if fault == "stopped" and batch.step == 5:
            print("waits for a signal", flush=True)
            os.read(awake, 1)
        if fault == "cut off" and batch.step == 25:
            distributed.OUT_OF_REACH = 0.1
            distributed_c10d._set_pg_timeout(timedelta(seconds=1))
            stopped = distributed.all_gather(os.getpid())[0]
            if rank == 1:
                os.kill(stopped, signal.SIGSTOP)  # it keeps its connections, and says nothing
            else:
                signal.pause()
        if batch.step == 25 and rank == 1 and first:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "broken":
                raise ValueError("0.png: the image is damaged")
            if fault == "wrong":
                raise RuntimeError("the sizes do not match")
        return super().__call__(batch)

loop.TrainStep = Step
stopped = None
try:
    code = main([word.replace("RANK", str(rank)) for word in sys.argv[1:]])
finally:
    if stopped is not None:
        os.kill(stopped, signal.SIGKILL)
if code == 0:  # the group is gone, with its threads: they would disturb the end of the process
    names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    code = ", ".join(name for name in names if "gloo" in name) or 0
sys.exit(code)
"""
Answers = list[tuple[int, str, str]]


@pytest.fixture(scope="module")
def work(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe, and its run in one process."""
    folder = tmp_path_factory.mktemp("ranks")
    write_crops_of(photo, folder / "hr")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    assert launch(folder, 1, ["--run", "one"])[0][0] == 0
    return folder


@pytest.fixture(scope="module")
def work_of_muon(work: Path) -> Path:
    """The same, and the run of Muon in one process: every rank orthogonalises for itself."""
    assert launch(work, 1, ["--run", "one-muon", *MUON])[0][0] == 0
    return work


@pytest.fixture
def _there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def launch(
    folder: Path,
    world: int,
    arguments: Sequence[str],
    fault: str = "",
    command: Sequence[str] = ("train", "recipe.toml"),
) -> Answers:
    """Run a command of eco-fast as so many ranks; exit code, output and errors of each."""
    port = free_port()
    processes = [
        PROCESSES.Process(target=run_rank, args=(folder, rank, world, port, fault, [*command, *arguments]))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    answers: Answers = []
    try:
        for rank, process in enumerate(processes):
            process.join()
            assert process.exitcode is not None
            out, errors = (said_by(folder, rank, stream).read_text(encoding="utf-8") for stream in (1, 2))
            answers.append((process.exitcode, out, errors))
    finally:
        for process in processes:
            process.kill()
    return answers


def run_rank(folder: Path, rank: int, world: int, port: int, fault: str, arguments: list[str]) -> None:
    """What `python script.py ARGUMENTS` does, in a process that has imported everything."""
    os.chdir(folder)
    become_rank(rank, world, port, [said_by(folder, rank, stream) for stream in (1, 2)])
    os.environ |= {"FAULT": fault, "TORCHELASTIC_ERROR_FILE": f"{rank}.json"}
    sys.argv = ["script.py", *arguments]
    runpy.run_path("script.py", run_name="__main__")


def said_by(folder: Path, rank: int, stream: int) -> Path:
    return folder / f"rank-{rank}.{stream}"


def losses(run: Path) -> list[float]:
    made = config.load(str(run / "config.toml"))
    return [row["loss"] for row in RunFolder(run, made, resume=True).rows() if "loss" in row]


def scores(run: Path) -> list[float]:
    made = config.load(str(run / "config.toml"))
    return [row["psnr_y"] for row in RunFolder(run, made, resume=True).rows() if "psnr_y" in row]


def assert_same_training(run: Path, reference: Path) -> None:
    """Losses to 1e-5 at every step, weights to 1e-4, and the same validation."""
    assert len(losses(reference)) == STEPS
    assert losses(run) == pytest.approx(losses(reference), rel=1e-5)
    assert scores(run) == pytest.approx(scores(reference), abs=1e-3)
    one, other = (load_file(folder / "checkpoints" / "last.safetensors") for folder in (run, reference))
    assert one.keys() == other.keys()
    for name, weight in other.items():
        assert (one[name] - weight).norm() <= 1e-4 * weight.norm(), name


@pytest.mark.usefixtures("_there")
def test_parts_of_a_batch_add_up_to_it(work: Path) -> None:
    for size in (1, 3):  # 7 in 3 parts is 2, 2 and 3
        run = f"parts-of-{size}"
        assert main(["train", "recipe.toml", "--run", run, "--train.micro_batch", str(size)]) == 0
        assert_same_training(work / run, work / "one")
    assert main(["train", "recipe.toml", "--run", "seed", "--seed", "1"]) == 0
    with pytest.raises(AssertionError):
        assert_same_training(work / "seed", work / "one")


@pytest.mark.parametrize(("world", "settings"), [(2, ()), (4, ()), (2, MUON), (4, MUON)])
def test_ranks_train_the_same_network(work_of_muon: Path, world: int, settings: tuple[str, ...]) -> None:
    """Seven samples over the ranks: their shares differ."""
    work, optimizer = work_of_muon, "-muon" if settings else ""
    run = work / f"world-{world}{optimizer}"
    for code, said, complaint in launch(work, world, ["--run", run.name, "--train.micro_batch", "2", *settings]):
        assert (code, complaint) == (0, "")
        assert ("step 50/50" in said) == bool(said)  # one of them speaks
    assert_same_training(run, work / f"one{optimizer}")


def last_step(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "last.state.pt", weights_only=True)["step"])


def test_an_error_that_nobody_foresaw_is_told_to_the_others_too(work: Path) -> None:
    """Exchanges fail by the same type of error."""
    (failed, _, complaint), (other, _, reason) = launch(work, 2, ["--run", "wrong"], "wrong")
    assert (failed, complaint.count("\n")) == (2, 1), complaint
    assert "eco-fast: rank 0 stopped, because rank 1 did: RuntimeError: the sizes do not match (on " in complaint
    assert (other, reason.splitlines()[-1]) == (1, "RuntimeError: the sizes do not match")


@pytest.mark.usefixtures("_there")
def test_the_rank_whose_error_stops_the_others_is_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what two ranks have left, one goes on with: it sees the same batches."""
    run = work / "broken"
    (failed, _, complaint), (other, _, reason) = launch(work, 2, ["--run", run.name], run.name)
    assert (failed, complaint.count("\n")) == (2, 1), complaint
    assert "eco-fast: rank 0 stopped, because rank 1 did: 0.png: the image is damaged (on " in complaint
    assert (other, reason) == (2, "eco-fast: rank 1: 0.png: the image is damaged\n")
    report = json.loads((work / "1.json").read_text(encoding="utf-8"))  # which torchrun shows
    assert report["message"]["message"] == "ValueError: rank 1: 0.png: the image is damaged"
    assert last_step(run) == 25  # of the validation
    assert main(["train", "recipe.toml", "--run", run.name, "--resume"]) == 0
    assert "continues at step 25 of 50" in capsys.readouterr().out
    assert_same_training(run, work / "one")


def test_machines_without_a_common_run_folder_are_refused_before_anything_is_trained(work: Path) -> None:
    for machine in ("machine-0", "machine-1"):
        shutil.copytree(work / "hr", work / machine / "hr")
        shutil.copy(work / "recipe.toml", work / machine)
    name = socket.gethostname()
    sentence = (
        f"run: what {name} writes there is not seen on {name}; several machines need this folder on a disk that they "
        "share\n"
    )
    for rank, (code, _, complaint) in enumerate(launch(work, 2, ["--run", "run"], "apart")):
        assert (code, complaint) == (2, f"eco-fast: rank {rank}: {sentence}")
    assert {path.name for path in (work / "machine-0/run").iterdir()} == {".lock", "config.toml", "environment.json"}
    assert not (work / "machine-1/run").exists()


def test_machines_with_a_store_each_train_the_same_network(work: Path) -> None:
    """Each prepares its own."""
    answers = launch(work, 2, ["--run", "own-disks", "--data.store", "store-of-RANK"], "own disks")
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert contents(work / "store-of-0") == contents(work / "store-of-1")
    assert_same_training(work / "own-disks", work / "one")


def test_machines_with_other_images_are_refused(work: Path) -> None:
    shutil.copytree(work / "hr", work / "images-of-0")
    shutil.copytree(work / "hr", work / "images-of-1")
    (work / "images-of-1/2.png").write_bytes((work / "hr/1.png").read_bytes())
    given = ["--run", "others", "--data.train", "images-of-RANK", "--data.store", "other-store-of-RANK"]
    (code, _, _), (other, _, complaint) = launch(work, 2, given, "own disks")
    assert (code, other) == (2, 2)
    assert complaint == (
        "eco-fast: rank 1: the training images are not those of rank 0: images-of-1/2.png is another "
        "(3 there, 3 here); let all machines have the same\n"
    )


def test_a_machine_whose_name_is_its_loopback_is_refused(work: Path) -> None:
    """gloo would give the others that address."""
    for rank, (code, _, complaint) in enumerate(launch(work, 2, ["--run", "loopback"], "loopback")):
        address = f"127.0.0.{1 + rank}"
        assert code == 2
        assert complaint.startswith(f"eco-fast: rank {rank}: the name {address} stands for {address}, where "), (
            complaint
        )


def test_a_rank_that_is_cut_off_from_the_store_says_so(work: Path) -> None:
    (killed, _, _), (code, _, complaint) = launch(work, 2, ["--run", "cut-off"], "cut off")
    assert killed == -signal.SIGKILL
    assert code == 1
    assert complaint.endswith(
        "rank 1 stopped; the store of all ranks, on localhost, is out of reach: killed or stalled?\n"
    )


def torchrun(work: Path, fault: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    return subprocess.Popen(
        [*command, "--", "script.py", "train", "recipe.toml", "--run", fault],
        cwd=work,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault.removeprefix("torchrun-")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_torchrun_names_a_killed_rank_and_restarts_from_the_last_checkpoint(work: Path) -> None:
    process = torchrun(work, "torchrun-killed", "--max-restarts", "1")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "failed (exitcode: -9) local_rank: 1 " in said
    assert "continues at step 25 of 50" in said
    assert_same_training(work / "torchrun-killed", work / "one")


@pytest.mark.usefixtures("_there")
def test_sigterm_stops_all_ranks_after_the_same_step(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = torchrun(work, "torchrun-stopped")
    assert process.stdout is not None
    for line in process.stdout:
        if "waits for a signal" in line:  # at step 5; torchrun hands it on to both
            process.send_signal(signal.SIGTERM)
            break
    said = process.communicate()[0]
    assert said.count("eco-fast: interrupted; go on with --resume") == 2
    assert last_step(work / "torchrun-stopped") == 7  # step 5 ends, and the ranks' agreement travels beside step 6
    assert main(["train", "recipe.toml", "--run", "torchrun-stopped", "--resume"]) == 0
    assert "continues at step 7 of 50" in capsys.readouterr().out
    assert_same_training(work / "torchrun-stopped", work / "one")


@pytest.mark.usefixtures("_there")
def test_ranks_share_the_centroids(work: Path) -> None:
    """Each makes its part of the images, and the store is the one that a single process makes."""
    (work / "teacher.safetensors").write_bytes((work / "one/checkpoints/last.safetensors").read_bytes())
    settings = [
        "--objective.name",
        "eco",
        "--teacher.checkpoint",
        "teacher.safetensors",
        "--train.steps",
        "4",
        "--train.log_every",
        "4",
    ]
    assert main(["train", "recipe.toml", "--run", "eco-1", *settings]) == 0
    assert [code for code, _, _ in launch(work, 2, ["--run", "eco-2", *settings])] == [0, 0]
    stores = [contents(work / run / "store") for run in ("eco-1", "eco-2")]
    assert stores[0] == stores[1]
    assert sum(path.suffix == ".pack" for path in stores[0]) == 2  # of HR images, and of centroids


def contents(store: Path) -> dict[Path, bytes]:
    """Every file, without what the manifests say of when the packs were written."""
    return {
        path.relative_to(store): re.sub(rb'"written": ".*"', b"", path.read_bytes())
        for path in store.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("_there")
def test_ranks_share_an_evaluation(work: Path) -> None:
    given = ["evaluate", "one/checkpoints/last.safetensors", "--data", "hr", "--scale", "2", "--device", "cpu"]
    assert main([*given, "--json", "scores-1.json"]) == 0
    answers = launch(work, 2, ["--json", "scores-2.json"], command=given)
    assert [(code, "PSNR-Y" in said) for code, said, _ in answers] == [(0, True), (0, False)]
    one, two = ((work / f"scores-{world}.json").read_text(encoding="utf-8") for world in (1, 2))
    assert one == two
