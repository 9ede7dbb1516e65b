"""Runs opened for analysis: recipe, images, centroids, and the network at any kept step. Nothing is trained.

The samples of a training are a pure function of its recipe and the step, so any step's batch can be reproduced.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eco_fast import config as recipes
from eco_fast.config import Config
from eco_fast.data.batch import Samples
from eco_fast.data.centroid_store import centroid_folder, open_centroids, teacher_hash
from eco_fast.data.loader import PlainLoader
from eco_fast.data.objective import OBJECTIVES, blend_weights_at
from eco_fast.data.sources import without_small
from eco_fast.data.store import Store
from eco_fast.models import METADATA, Network, load_network_of_scale, read_state
from eco_fast.study.run_results import read_recipe
from eco_fast.training.checkpoints import STEP, read_whole_state, state_path, weights_path
from eco_fast.training.optim.optimizer_step import OptimizerStep
from eco_fast.training.run_folder import CHECKPOINTS
from eco_fast.training.state import initial_network
from eco_fast.utils.device import pick_device


@dataclass(frozen=True)
class Run:
    """A training with kept checkpoints, finished or not.

    Attributes:
        folder: its run folder.
        config: its recipe.
        hr: its HR images.
    """

    folder: Path
    config: Config
    hr: Store

    @property
    def objective(self) -> str:
        """The name of its objective: vanilla, kd, noise_free, eco or residual."""
        return self.config.objective.name

    @property
    def device(self) -> str:
        """The device of its recipe, where its network is analysed."""
        return pick_device(self.config.train.device)

    @property
    def checkpoints(self) -> Path:
        """The folder of its weights."""
        return self.folder / CHECKPOINTS

    def kept_steps(self) -> list[int]:
        """Steps done at the initial weights, 0, and at the kept checkpoints, ascending.

        Raises:
            ValueError: no checkpoints are kept; says how to keep some.
        """
        names = [path.name.removesuffix(".safetensors") for path in self.checkpoints.glob("step-*.safetensors")]
        if not names:
            raise ValueError(
                f"{self.checkpoints}: expected checkpoints step-NUMBER.safetensors, found none; "
                "train the run with --train.keep_checkpoints N, N above 1"
            )
        return [0, *sorted(int(name.removeprefix("step-")) for name in names)]

    def network(self, at: str | int) -> tuple[Network, int]:
        """The weights for inference (the running average, where the recipe keeps one), and the steps done at them.

        Args:
            at: the name of a checkpoint, last or best, or the number of steps done; 0: the initial weights.

        Returns:
            The network in evaluation mode, frozen, on the run's device.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        if at == 0:
            return self._initial().eval().requires_grad_(requires_grad=False), 0
        path = weights_path(self.checkpoints, at if isinstance(at, str) else STEP.format(at))
        if not path.is_file():
            known = ", ".join(sorted(one.stem for one in self.checkpoints.glob("*.safetensors"))) or "none"
            raise ValueError(f"{path}: there is no such checkpoint; this run has {known}")
        step: int = json.loads(read_state(path)[1][METADATA])["step"]
        return load_network_of_scale(path, self.config.scale).to(self.device), step

    def training(self, step: int) -> tuple[Network, OptimizerStep]:
        """The network (its own weights, not their average) and the optimizer at the beginning of a step.

        Returns:
            Both on the run's device: the network in training mode; its optimizer, which skips no spikes.

        Raises:
            ValueError: no training state of that step is kept.
        """
        network = self._initial().train()
        accepting = self.config.optimizer.model_copy(update={"spike_factor": 0.0})
        updater = OptimizerStep(network.parameters(), accepting, self.device, matrices=network.body_matrices())
        if step:
            path = state_path(self.checkpoints, STEP.format(step))
            if not path.is_file():
                raise ValueError(f"{path}: the training state beside the weights is missing; copy the run as a whole")
            state = read_whole_state(path)
            network.load_state_dict(state["network"])
            updater.load_state_dict(state["updater"])
        return network, updater

    def batches(self, recipe: Config, step: int, count: int) -> list[Samples]:
        """The batches of `count` steps under the recipe's objective, on the run's device.

        Args:
            recipe: the run's, or with another objective; see `recipe_at`.
            step: the first one, counted from 0; may be beyond the end of the training.
            count: at least 1.

        Raises:
            ValueError: the objective needs centroids, and they or their teacher are missing.
        """
        sr = self.centroids if recipe.needs_centroids else None
        loader = PlainLoader(recipe, self.hr, sr)
        return [loader.batch_at(step + ahead).samples.to(self.device) for ahead in range(count)]

    @property
    def teacher(self) -> Path:
        """The teacher's checkpoint.

        Raises:
            ValueError: it is missing.
        """
        named = self.config.teacher.checkpoint
        places = [Path(named)]
        if named == "self":  # a baseline's folder is inside the student's
            places = [weights_path(one / "teacher" / CHECKPOINTS, "last") for one in (self.folder, self.folder.parent)]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise ValueError(f"{self.folder}: its centroids are named after their teacher, expected at {places[0]}")
        return found

    @cached_property
    def centroids(self) -> Store:
        """The teacher's outputs over the HR images, in their order.

        Raises:
            ValueError: they or the teacher are missing, or the images have changed since they were made.
        """
        teacher = self.teacher
        scale, rounding = self.config.scale, self.config.data.rounding
        ensemble = self.config.teacher.self_ensemble
        sha256 = teacher_hash(self.hr.folder, scale, rounding, teacher)
        folder = centroid_folder(self.hr.folder, scale, rounding, sha256, self_ensemble=ensemble)
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: the centroids are missing; make them with `eco-fast centroids --store {self.hr.folder} "
                f"--teacher {teacher} --scale {scale} --rounding {rounding}{' --self-ensemble' if ensemble else ''}`"
            )
        return open_centroids(self.hr, folder, scale)

    def _initial(self) -> Network:
        """The initial weights, on the run's device."""
        network, _ = initial_network(self.config)
        network.to(device=self.device, memory_format=network.memory_format)  # type: ignore[call-overload]
        return network


def open_run(folder: Path) -> Run:
    """Open a run folder.

    Raises:
        ValueError: not a run, its images are missing, or its batches do not come from a store.
    """
    config = read_recipe(folder)
    if config.data.source != "store" or config.data.downsample != "kernel":
        raise ValueError(
            f"{folder}: analyses read the store, but this run has data.source={config.data.source} and "
            f"data.downsample={config.data.downsample}; train it with store and kernel, which give the same samples"
        )
    places = [Path(config.data.store)] if config.data.store else [folder / "store", folder.parent / "store"]
    store = next((place for place in places if place.is_dir()), places[0])
    hr = without_small(Store(store), config.scale, config.data.patch, skip=config.data.on_small_image == "skip")
    return Run(folder, config, hr)


def open_runs(folders: Sequence[Path], same: Sequence[str]) -> list[Run]:
    """Open runs that are to be compared, ordered by objective and seed.

    Args:
        folders: their run folders.
        same: prefixes of the keys in which their recipes must agree.

    Raises:
        ValueError: as `open_run`; or an objective makes no SR images; or recipes or images differ; or two runs have
            the same objective and seed; names the runs.
    """
    runs = [open_run(folder) for folder in folders]
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        if run.objective not in OBJECTIVES:
            raise ValueError(
                f"{run.folder}: its objective is {run.objective}, which makes no SR images; "
                f"expected one of {', '.join(OBJECTIVES)}"
            )
        differing = [key for key in recipes.differences(runs[0].config, run.config) if key.startswith(tuple(same))]
        if differing:
            raise ValueError(
                f"{run.folder}: its {differing[0]} is not that of {runs[0].folder}; name runs that differ only in "
                "objective and seed"
            )
        if [entry.sha256 for entry in run.hr.entries] != [entry.sha256 for entry in runs[0].hr.entries]:
            raise ValueError(f"{run.folder}: was trained on other images than {runs[0].folder}; name runs of the same")
        key = (run.objective, run.config.seed)
        if key in seen:
            raise ValueError(
                f"{run.folder}: {seen[key].folder} has the same objective {key[0]} and seed {key[1]}; name one of them"
            )
        seen[key] = run
    return sorted(runs, key=lambda run: (OBJECTIVES.index(run.objective), run.config.seed))


def recipe_at(config: Config, step: int, objective: str | None = None) -> Config:
    """A recipe in float32 whose objective stays as it is at a step: eco's alpha is constant.

    Half precision would drown differences of gradients in rounding errors.

    Args:
        config: the recipe.
        step: counted from 0.
        objective: vanilla, kd, noise_free or eco; None for the recipe's own.
    """
    named = config.objective.model_copy(update={"name": objective or config.objective.name})
    alpha = blend_weights_at(named, step, config.train.steps).target
    fixed = named.model_copy(update={"alpha": "constant", "alpha_value": alpha})
    train = config.train.model_copy(update={"precision": "fp32"})
    return config.model_copy(update={"objective": fixed, "train": train})
