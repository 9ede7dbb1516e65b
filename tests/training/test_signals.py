"""Ctrl-C and full disks: one sentence, nothing half-written, and the same command goes on."""

import errno
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.cli.main import main
from eco_fast.config import Config
from eco_fast.data.images import Pixels
from eco_fast.data.store import MANIFEST, Store
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.checkpoints import Checkpoints
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.signals import SIGNALS, StoppedBySignal, StopSignal, stops_cleanly
from eco_fast.utils.files import write_atomically
from tests.helpers import complaint

TINY = """
[data]
train = ["hr"]
patch = 8
[model]
features = 8
blocks = 1
[teacher]
checkpoint = "teacher.safetensors"
[train]
steps = 4
batch_size = 2
log_every = 1
checkpoint_every = 2
device = "cpu"
compile = false
"""
COMMANDS = {
    "prepare": ["prepare", "hr", "--store", "store"],
    "centroids": [
        "centroids",
        "--store",
        "store",
        "--teacher",
        "teacher.safetensors",
        "--scale",
        "2",
        "--device",
        "cpu",
    ],
    "train": ["train", "tiny.toml", "--run", "run"],
}
WORK = {
    "prepare": "eco_fast.data.decode.read_image",
    "centroids": "eco_fast.inference.centroids.upscale_tiled",
    "train": "eco_fast.training.step.network_input",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds images, a teacher and a recipe."""
    monkeypatch.chdir(tmp_path)
    Path("hr").mkdir()
    for index, side in enumerate((20, 24, 90)):
        Image.fromarray(photo[100 : 100 + side, 150 : 150 + side]).save(f"hr/{index}.png")
    Path("tiny.toml").write_text(TINY, encoding="utf-8")
    torch.manual_seed(0)
    save_network(Path("teacher.safetensors"), EDSR(2, features=8, blocks=1))


@pytest.fixture(autouse=True)
def _nothing_is_ignored() -> Iterator[None]:
    """Tests that run in the background, or by nohup, were started to ignore signals; so would be what they start."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def last_call(monkeypatch: pytest.MonkeyPatch, name: str, count: int, error: BaseException) -> None:
    """Let the function of this name work `count` times and then raise."""
    module, _, function = name.rpartition(".")
    real: Callable[..., Any] = getattr(sys.modules[module], function)
    left = iter(range(count))

    def limited(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(name, limited)


def half_written() -> list[Path]:
    return [path for path in Path().rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_with_one_line_and_the_command_goes_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "centroids":
        main(COMMANDS["prepare"])
    for module in ("data.prepare", "inference.centroids", "training.loop"):
        __import__(f"eco_fast.{module}")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        last_call(patch, WORK[command], 2, KeyboardInterrupt())
        assert main(COMMANDS[command]) == 130
    advice = "go on with --resume" if command == "train" else "run the same command again to go on"
    assert capsys.readouterr().err == f"\neco-fast: interrupted; {advice}\n"
    assert half_written() == []
    assert main([*COMMANDS[command], *(["--resume"] if command == "train" else [])]) == 0
    if command == "train":
        assert [row["step"] for row in rows(Path("run"))] == [1, 2, 3, 4]
        assert Path("run/summary.json").is_file()


def rows(run: Path) -> list[dict[str, Any]]:
    from eco_fast import config

    return RunFolder(run, config.load(str(run / "config.toml")), resume=True).rows()


WAITING = """
import os, signal, sys
from eco_fast.cli.main import main
from eco_fast.training import loop

awake, wake = os.pipe()  # a signal writes a byte
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)

class Waiting(loop.TrainStep):
    def __call__(self, batch):
        for _ in range(COUNT if batch.step == 5 else 0):
            print("waits for a signal", flush=True)
            os.read(awake, 1)
        return super().__call__(batch)

loop.TrainStep = Waiting
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code", "kept"),
    [((signal.SIGINT,), 130, 6), ((signal.SIGUSR2,), 140, 6), ((signal.SIGINT, signal.SIGINT), 130, 4)],
    ids=["ctrl-c", "sigusr2", "ctrl-c twice"],
)
def test_a_real_signal_during_training(
    signals: tuple[signal.Signals, ...], code: int, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step that is under way is finished and kept; whoever cannot wait for it asks twice."""
    given = [*COMMANDS["train"], "--train.steps", "8"]
    left = list(signals)
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.replace("COUNT", str(len(signals))), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("waits for a signal"):
                process.send_signal(left.pop(0))
        said = process.stderr.read()
    assert (left, process.returncode, said) == ([], code, "\neco-fast: interrupted; go on with --resume\n")
    assert half_written() == []
    assert main([*given, "--resume"]) == 0
    assert f"student continues at step {kept} of 8" in capsys.readouterr().out
    assert [row["step"] for row in rows(Path("run"))] == list(range(1, 9))


@pytest.mark.parametrize(("command", "store"), [("prepare", "store"), ("centroids", "store/centroids")])
def test_a_full_disk_while_an_image_is_stored(
    command: str,
    store: str,
    file_size_limit: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "centroids":
        main(COMMANDS["prepare"])
    file_size_limit(10_000)  # the first two images fit, the third does not
    said = complaint(capsys, *COMMANDS[command])
    file_size_limit(resource.RLIM_INFINITY)
    (journal,) = Path(store).rglob("journal.jsonl")
    assert said.startswith(f"{journal.parent}/packs/00000.pack: cannot be read or written (File too large")
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 2
    assert half_written() == []
    assert not (journal.parent / MANIFEST).exists()
    with pytest.raises(ValueError, match="an unfinished store"):
        Store(journal.parent)
    assert main(COMMANDS[command]) == 0
    assert len(Store(journal.parent)) == 3


def test_a_disk_that_fails_at_any_moment_of_preparing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At each of its syncs in turn: of packs, journal, table, manifest, and of the folders that they lie in."""
    for calls in itertools.count():
        shutil.rmtree("store", ignore_errors=True)
        with monkeypatch.context() as patch:
            last_call(patch, "os.fsync", calls, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            if main(COMMANDS["prepare"]) == 0:
                break
        said = capsys.readouterr().err
        assert said.startswith(("eco-fast: .: ", "eco-fast: store"))
        assert said.endswith(": cannot be read or written (No space left on device)\n")
        assert half_written() == []
        assert main(COMMANDS["prepare"]) == 0
        for index, pixels in enumerate(Store(Path("store")).images):
            with Image.open(f"hr/{index}.png") as image:
                assert np.array_equal(pixels, np.asarray(image))
        capsys.readouterr()
    assert calls >= 6


def test_a_full_disk_while_a_checkpoint_is_written_keeps_the_earlier_one(
    monkeypatch: pytest.MonkeyPatch, file_size_limit: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny.toml", "--run", "straight"]) == 0
    save, state = Checkpoints.save, Path("run/checkpoints/last.state.pt")
    for size in (10_000, 30_000):  # with the first bytes of the state, and with its last ones
        earlier: list[bytes] = []

        def save_on_a_full_disk(
            made: Checkpoints,
            network: EDSR,
            step: int,
            facts: dict[str, Any],
            *,
            best: bool,
            size: int = size,
            earlier: list[bytes] = earlier,
        ) -> None:
            if step == 4:
                made.wait()
                earlier.append(state.read_bytes())
                file_size_limit(size)
            save(made, network, step, facts, best=best)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_on_a_full_disk)
            said = complaint(capsys, *COMMANDS["train"], "--resume")
        file_size_limit(resource.RLIM_INFINITY)
        assert said == "run/checkpoints/last.state.pt: cannot be read or written (File too large)"
        assert half_written() == []
        assert [state.read_bytes()] == earlier
    assert main([*COMMANDS["train"], "--resume"]) == 0
    for part in ("metrics.jsonl", "checkpoints/last.state.pt"):
        assert load(Path("run", part)) == load(Path("straight", part))


def test_every_way_in_which_a_checkpoint_can_fail_names_it(file_size_limit: Callable[[int], None]) -> None:
    state = EDSR(2, features=8, blocks=1).state_dict()
    write_atomically(Path("state.pt"), lambda file: torch.save(state, file))
    earlier = Path("state.pt").read_bytes()
    for size in range(1000, len(earlier) - 1000, 2000):  # torch raises this or that, depending on where it fails
        file_size_limit(size)
        with pytest.raises(OSError, match="File too large") as caught:
            write_atomically(Path("state.pt"), lambda file: torch.save(state, file))
        file_size_limit(resource.RLIM_INFINITY)
        assert caught.value.filename == "state.pt"
        assert half_written() == []
    assert Path("state.pt").read_bytes() == earlier


def load(path: Path) -> object:
    """The content of a file, for comparing."""
    if path.suffix != ".pt":
        return path.read_text(encoding="utf-8")
    state = torch.load(path, weights_only=True)
    return {key: value.tolist() for key, value in state["network"].items()}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_is_kept_until_the_step_is_done(number: signal.Signals) -> None:
    with StopSignal.heard() as stop:
        assert stop.requested() == 0
        signal.raise_signal(number)
        assert stop.requested() == number


def test_what_the_run_was_started_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stops_cleanly(), StopSignal.heard() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_between_the_trainings_a_signal_ends_the_run_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(StoppedBySignal) as caught, stops_cleanly():
        signal.raise_signal(signal.SIGUSR1)
    assert caught.value.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_any_more_ends_no_run() -> None:
    """The reader closes after the first line; the rest of the run, and the process's end, must not mind."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from eco_fast.cli.main import main; sys.exit(main(sys.argv[1:]))"]
        + COMMANDS["train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "eco-fast: stdout is lost (Broken pipe); the run goes on\n")
    assert [row["step"] for row in rows(Path("run"))] == [1, 2, 3, 4]
    assert Path("run/summary.json").is_file()


@pytest.mark.slow
def test_a_run_needs_no_home_no_language_no_temporary_folder_and_no_output() -> None:
    Path("file").touch()
    surroundings = {key: value for key, value in os.environ.items() if key not in ("HOME", "LANG", "USER", "LOGNAME")}
    surroundings |= {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": "file/tmp"}
    surroundings |= {"MPLCONFIGDIR": "file/matplotlib", "XDG_CACHE_HOME": "file/cache"}
    command = [sys.executable, "-m", "eco_fast", *COMMANDS["train"]]
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>said', "sh", *command], env=surroundings, check=False)
    said = Path("said").read_text(encoding="utf-8")
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert [row["step"] for row in rows(Path("run"))] == [1, 2, 3, 4]
    assert Path("run/curves.png").is_file()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_is_away_for_a_while_is_waited_for(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny.toml", "--run", "straight"]) == 0
    monkeypatch.setattr("eco_fast.utils.lasting.PAUSE", 0.0)
    real, calls = os.fsync, itertools.count()

    def away(file: int) -> None:
        if 1 < next(calls) < 9:
            raise OSError(number, os.strerror(number))
        real(file)

    with monkeypatch.context() as patch:
        append = RunFolder.append
        patch.setattr(RunFolder, "append", lambda run, row: (patch.setattr(os, "fsync", away), append(run, row)))
        assert main(COMMANDS["train"]) == 0
    assert f"{os.strerror(number)}; tried again in 0 s" in capsys.readouterr().out
    for part in ("metrics.jsonl", "checkpoints/last.safetensors"):
        assert Path("run", part).read_bytes() == Path("straight", part).read_bytes()


def test_where_the_folder_is_not_mounted_none_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("eco_fast.utils.lasting.PAUSE", 0.0)
    monkeypatch.setattr("eco_fast.utils.lasting.TRIES", 3)
    network = EDSR(2, features=8, blocks=1)
    with (
        pytest.raises(FileNotFoundError),
        Checkpoints(tmp_path / "unmounted" / "run" / "checkpoints", Config()) as checkpoints,
    ):
        checkpoints.save(network, 1, {"network": network.state_dict()}, best=False)
    assert not (tmp_path / "unmounted").exists()
