"""`eco-fast train RECIPE --dry-run`: what a run would cost and do. Nothing is trained, written or allocated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from eco_fast_kernels import margin_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from eco_fast.config import Config
from eco_fast.config.derived import self_teacher, vanilla
from eco_fast.data.images import find_images
from eco_fast.data.store import Store, centroid_folder, open_centroids
from eco_fast.models import Network, build
from eco_fast.objective import mix_at
from eco_fast.training.checkpoints import load_state, weights_path
from eco_fast.training.pipeline import check_scored
from eco_fast.training.precision import Precision, choose_precision
from eco_fast.training.profiling import saved_bytes, training_flops
from eco_fast.training.run_folder import CHECKPOINTS, check_folder
from eco_fast.training.step import TrainingLoss, split
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device
from eco_fast.utils.files import sha256_of, size_in_words


@dataclass(frozen=True)
class Cost:
    """What one training of a recipe takes."""

    parameters: int
    """That are trained."""
    multiply_adds: int
    """Of the forward pass of one LR patch; the backward pass takes twice as many."""
    at_once: int
    """Patches that a device has in memory."""
    weights: int
    """Bytes; the gradients take as many, the optimizer's moments twice as many, a running average once more."""
    activations: int
    """Bytes that the forward pass keeps for the backward pass; torch.compile keeps less."""
    copies: int
    """How often the weights' memory is taken: weights, gradients, moments, average."""

    @property
    def memory(self) -> int:
        """Bytes on each device."""
        return self.copies * self.weights + self.activations


def dry_run(config: Config, folder: Path, *, resume: bool) -> None:
    """Print what `run_recipe` with the same arguments would cost, and what it would do or find done.

    Raises:
        ValueError: the recipe's device is not there, or cannot do its precision; or its residuals cannot be scored.
    """
    check_scored(config)
    device = pick_device(config.train.device)
    precision = choose_precision(config.train, device)
    cost = estimate(config, device, precision)
    train, patch = config.train, config.data.patch
    lines = {
        "recipe": config.description,
        "network": f"{config.model.name} x{config.scale}, {cost.parameters:,} parameters, {cost.multiply_adds:,} "
        f"multiply-adds for a patch of {patch}x{patch} LR pixels",
        "training": f"{config.objective.name}, {config.objective.loss}; {config.optimizer.name}, "
        f"{config.optimizer.learning_rate:.2e}, {config.optimizer.schedule}; {train.steps:,} steps of {train.batch} "
        f"patches, {train.steps * train.batch:,} patches in all",
        "memory": f"{size_in_words(cost.memory)} on {device}, for {cost.at_once} patches at once in "
        f"{precision.name}: {size_in_words(cost.copies * cost.weights)} of weights, gradients and optimizer, "
        f"{size_in_words(cost.activations)} of activations at most",
        **stages(config, folder, resume=resume),
    }
    for name, text in lines.items():
        print(f"{name:<9} {text}", flush=True)


def estimate(config: Config, device: str, precision: Precision) -> Cost:
    """Count without computing: on tensors that have a shape and no memory."""
    with torch.device("meta"):
        network = build(config.model, config.scale)
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    samples = -(-config.train.batch // distributed.world_size())
    at_once = max(part.stop - part.start for part in split(samples, config.train.micro_batch or samples))
    return Cost(
        parameters=parameters,
        multiply_adds=training_flops(network, config.data.patch) // 6,  # two operations, forward and twice backward
        at_once=at_once,
        weights=4 * parameters,
        activations=activation_bytes(config, network, device, precision, at_once),
        copies=4 + (config.train.ema_decay > 0),
    )


def activation_bytes(config: Config, network: Network, device: str, precision: Precision, samples: int) -> int:
    """What the forward pass of so many patches keeps for the backward pass."""
    side, patch = config.scale * config.data.patch + 2 * margin_of(config.scale), config.data.patch
    mix = mix_at(config.objective, config.train.steps // 2, config.train.steps)
    by_dali = config.data.downsample == "dali"
    loss = TrainingLoss(network, config, precision)
    with FakeTensorMode(), torch.device(device):

        def windows(size: int, *, wanted: bool) -> Tensor | None:
            return torch.empty(samples, size, size, 3, dtype=torch.uint8) if wanted else None

        inputs = {
            "target_alpha": torch.tensor(mix.target),
            "gradient_scale": torch.ones(()),
            "hr": windows(side, wanted=mix.reads_hr),
            "sr": windows(side, wanted=mix.reads_sr),
            "lr_of_hr": windows(patch, wanted=by_dali and mix.reads_hr),
            "lr_of_sr": windows(patch, wanted=by_dali and mix.reads_sr),
            "transposed": torch.zeros(samples, dtype=torch.bool),
            "input_alpha": torch.tensor(mix.input),
            "noise": torch.empty(samples, 3, patch, patch) if config.data.noise_sigma else None,
            "draws": torch.empty(samples, config.model.draws) if config.model.draws else None,
        }
        tensors = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in tensors.items()
        }
        return saved_bytes(weights.values(), lambda: functional_call(loss, weights, kwargs=inputs))


def stages(config: Config, folder: Path, *, resume: bool) -> dict[str, str]:
    """What each stage of `run_recipe` would do, or has done."""
    found = {"prepare": prepare_stage(config, folder)}
    if not config.needs_centroids:
        found["teacher"] = f"not needed for {config.objective.name}"
    elif config.data.source == "encoded" and config.data.centroids:
        found["teach"] = f"not needed: centroids are {pictures([config.data.centroids])}"
    else:
        teacher, own = Path(config.teacher.checkpoint), folder / "teacher"
        ready = teacher.is_file()
        found["teacher"] = f"{teacher}{'' if ready else ' is missing'}"
        if config.teacher.checkpoint == "self":
            teacher = weights_path(own / CHECKPOINTS, "last")
            ready = (step_of(own) or 0) >= config.teacher.steps
            found["teacher"] = training_stage(self_teacher(config), own, resume=resume)
        found["teach"] = teach_stage(config, folder, teacher) if ready else "after the teacher"
    found["train"] = training_stage(config, folder, resume=resume)
    if config.train.vanilla_twin:
        found["vanilla"] = training_stage(vanilla(config), folder / "vanilla", resume=resume)
    for name, sources in (("validate", config.data.validation), ("test", config.data.test or config.data.validation)):
        found[name] = pictures(sources) if sources else "no pictures are named"
    return found


def prepare_stage(config: Config, folder: Path) -> str:
    """The state of the HR pictures."""
    data = config.data
    if data.source == "encoded":
        return f"not needed: {pictures(data.train)}, decoded at every step"
    store = store_of(config, folder)
    if not data.train and not data.store:
        return """data.train is missing: name your HR pictures, for example --set data.train='["DIV2K_HR"]'"""
    try:
        stored = f"{len(Store(store))} pictures in {store}"
    except ValueError as error:
        return f"{pictures(data.train)} into {store}" if data.train else str(error)
    return f"{stored}, to be compared with {pictures(data.train)}" if data.train else f"not needed: {stored}"


def teach_stage(config: Config, folder: Path, teacher: Path) -> str:
    """The state of the centroids of a teacher that is there."""
    store = store_of(config, folder)
    made = centroid_folder(
        store,
        config.scale,
        config.data.rounding,
        sha256_of(teacher),
        self_ensemble=config.teacher.self_ensemble,
    )
    try:
        return f"reused: {len(open_centroids(Store(store), made, config.scale))} centroids in {made}"
    except ValueError:
        return f"into {made}"


def training_stage(config: Config, folder: Path, *, resume: bool) -> str:
    """The state of one training."""
    steps, done = config.train.steps, step_of(folder)
    try:
        check_folder(folder, config, resume=resume)
        refused = ""
    except ValueError as error:
        refused = f"; refused: {error}"
    if done is not None:
        state = f"goes on at step {done:,} of {steps:,}" if done < steps else f"finished, at step {steps:,}"
        return state + refused
    start = config.model.start_from
    origin = f" from {start}{'' if Path(start).is_file() else ', which is missing'}" if start else " from scratch"
    return f"{steps:,} steps{origin}{refused}"


def step_of(folder: Path) -> int | None:
    """Steps that a training has behind it, or None where it has not begun."""
    state = load_state(folder / CHECKPOINTS, "meta")
    return None if state is None else int(state["step"])


def store_of(config: Config, folder: Path) -> Path:
    """Where the decoded pictures are or will be."""
    return Path(config.data.store) if config.data.store else folder / "store"


def pictures(sources: Sequence[str]) -> str:
    """How many pictures the sources hold, or what is wrong with them."""
    try:
        return f"{len(find_images(sources))} pictures of {', '.join(sources)}"
    except ValueError as error:
        return str(error)
