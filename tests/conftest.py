"""Shared fixtures: small real photographs, the benchmark images where a machine has them, and where kernels run."""

import copy
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

from torch._dynamo.utils import counters

from eco_fast import config
from eco_fast.data.centroid_store import open_centroids
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.prepare import prepare
from eco_fast.models import Network, save_network, spandrel_net
from eco_fast.models.edsr import EDSR
from eco_fast.training.loop import train_network
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.validation import ValidationSets
from tests.data.matlab_sets import IN_REPOSITORY
from tests.helpers import centroids_of

os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # processes that tests start run the same code
torch.set_num_threads(1)  # networks and images this small only lose by a second thread
settings.register_profile(  # the same examples at every run: what a change did not touch does not fail it
    "any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

collect_ignore_glob = [] if find_spec("triton") else ["kernels/test_fused_*.py", "kernels/test_machine_code.py"]


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(42)
    np.random.seed(42)  # noqa: NPY002 - libraries under test may read the global state


@pytest.fixture(scope="session")
def spandrel() -> Any:
    """The library of other people's networks."""
    return spandrel_net.spandrel()


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run: on a GPU, else in Triton's interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    from triton.knobs import runtime

    if not runtime.interpret:
        pytest.fail("without a GPU the kernels need Triton's interpreter: set TRITON_INTERPRET=1 before it is imported")
    return "cpu"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nobody has written is NaN, or the largest whole number: an element left out shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3, dtype=torch.bfloat16).isnan().all()
    assert torch.empty_like(torch.zeros(3, dtype=torch.float16)).isnan().all()
    assert torch.empty(3, dtype=torch.uint8).tolist() == [255, 255, 255]
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Benchmark images that may not be redistributed: tests that need them are skipped where they are absent."""
    folder = Path(os.environ.get("ECO_FAST_DATA", "nowhere"))
    if not folder.is_dir():
        pytest.skip("needs the benchmark images (benchmark/Set5, ...) in the folder that $ECO_FAST_DATA names")
    return folder


@pytest.fixture(params=["in repository", "Set5", "Set14"])
def matlab_set(request: pytest.FixtureRequest) -> Path:
    """A folder of HR images and of what MATLAB makes of them, for `matlab_files`."""
    if request.param == "in repository":
        return IN_REPOSITORY
    shared: Path = request.getfixturevalue("shared_data")
    return shared / "benchmark" / str(request.param)


@pytest.fixture(scope="session")
def photo() -> Pixels:
    """A real photograph: uint8 [300, 451, 3]."""
    return read_image(dict(builtin_images("test"))["builtin/chelsea.png"])


@pytest.fixture(scope="session")
def kept_runs(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four steps that have kept every checkpoint, in folders OBJECTIVE-SEED, with one store and teacher."""
    folder = tmp_path_factory.mktemp("kept")
    for index, (top, left) in enumerate([(60, 120), (150, 200)]):
        write_png(folder / "train" / f"{index}.png", photo[top : top + 53, left : left + 60])
    torch.manual_seed(7)
    teacher = EDSR(2, 8, 1).eval()
    save_network(folder / "teacher.safetensors", teacher)
    store = prepare([str(folder / "train")], folder / "store")
    made = centroids_of(store.folder, folder / "teacher.safetensors", 2)
    values: dict[str, Any] = {
        "scale": 2,
        "data": {"store": str(store.folder), "patch": 8},
        "model": {"features": 8, "blocks": 1},
        "teacher": {"checkpoint": str(folder / "teacher.safetensors")},
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2},
        "train": {"steps": 4, "batch_size": 3, "compile": False, "device": "cpu"},
    }
    values["train"] |= {"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9}
    for objective, seed in (("vanilla", 1), ("vanilla", 2), ("noise_free", 1), ("noise_free", 2), ("eco", 1)):
        recipe = config.validate({**values, "seed": seed, "objective": {"name": objective}}, "test")
        with RunFolder(folder / f"{objective}-{seed}", recipe, resume=False) as run:
            train_network(run, store, open_centroids(store, made, 2), ValidationSets())
    return folder


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Makes the system refuse to let any file grow beyond so many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FailsLater:
    """A picture that can be read three times."""

    shape = (40, 40, 3)

    def __init__(self) -> None:
        self.reads = 0

    def __getitem__(self, key: Any) -> Pixels:
        self.reads += 1
        if self.reads > 3:
            raise OSError("the disk has gone")
        pixels: Pixels = np.zeros(self.shape, np.uint8)[key]
        return pixels


@pytest.fixture
def fails_later() -> Pixels:
    """A picture whose fourth reading raises OSError("the disk has gone")."""
    return cast("Pixels", FailsLater())


@dataclass(frozen=True)
class LambCase:
    """One LAMB step of two weights, by hand: learning rate 0.1, no memory (betas of 0), no epsilon to speak of."""

    start: tuple[float, float]
    gradient: tuple[float, float]
    clip_value: float | None
    expected: tuple[float, float]

    @property
    def clipped(self) -> list[float]:
        """The gradient within its bound."""
        bound = 10 if self.clip_value is None else self.clip_value
        return [max(min(value, bound), -bound) for value in self.gradient]


@pytest.fixture(
    params=[
        # Without memory the update is g / |g| per element, here (1, 1), of norm sqrt(2).
        LambCase((3.0, 4.0), (0.5, 0.5), None, (3 - 0.5 / 2**0.5, 4 - 0.5 / 2**0.5)),
        LambCase((30.0, 40.0), (0.5, 0.5), None, (30 - 1 / 2**0.5, 40 - 1 / 2**0.5)),  # 10 instead of 50
        LambCase((0.0, 0.0), (0.5, -0.5), None, (-0.1, 0.1)),  # ratio 1 for zero weights
        LambCase((3.0, 4.0), (0.0, 0.0), None, (3.0, 4.0)),  # and for a zero update
        LambCase((3.0, 4.0), (8.0, -8.0), 0.1, (3 - 0.5 / 2**0.5, 4 + 0.5 / 2**0.5)),
        LambCase((3.0, 4.0), (8.0, -8.0), 0.0, (3.0, 4.0)),  # a bound of 0 is a bound
    ]
)
def lamb_case(request: pytest.FixtureRequest) -> LambCase:
    """Steps whose result is known."""
    case: LambCase = request.param
    return case


@pytest.fixture
def compiled_is_as_exact_as_eager() -> Callable[..., None]:
    """A check of a network's loss and gradients when it is compiled: no break, so many graphs, eager's exactness."""
    return check_compiled


def check_compiled(
    network: Network,
    lr: Tensor,
    *more: Tensor | None,
    compile_it: Callable[[Network], object],
    graphs: int = 1,
    slack: float = 1e-6,
) -> None:
    """Compare with float64: at most twice the error of eager float32, and `slack` of the value itself."""
    exact, compiled = copy.deepcopy(network).double(), copy.deepcopy(network)
    torch.compiler.reset()
    counters.clear()
    compile_it(compiled)
    ours, theirs, truth = (results(run, lr, *more) for run in (compiled, network, exact))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
    for our, their, right in zip(ours, theirs, truth, strict=True):
        error, allowed = (our - right).norm(), 2 * (their - right).norm()
        assert error <= allowed + slack * right.norm()


def results(network: Network, lr: Tensor, *more: Tensor | None) -> list[Tensor]:
    """A loss and all its gradients."""
    parameters = list(network.parameters())
    loss = network(lr.to(parameters[0].dtype), *more).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium without a network, with the messages of its console and the requests of its pages."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives a browser")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs the programs chromium (or google-chrome) and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as opened:
        yield opened
