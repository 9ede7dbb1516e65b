"""The sets of images that the networks of a comparison are scored on."""

import copy
import json
from pathlib import Path

from eco_fast.config import Config
from eco_fast.evaluation.benchmarks import BenchmarkSets, read_images, read_sets, set_name
from eco_fast.evaluation.evaluate import json_safe
from eco_fast.evaluation.metrics import average
from eco_fast.evaluation.scoring import pairs_of, score_network
from eco_fast.models import Network
from eco_fast.study.comparison import StoredScores
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device
from eco_fast.utils.files import name_damaged, write_json


class ScoredSets:
    """The sets that networks are scored on.

    Raises:
        ValueError: bad images, or none for the validation.
    """

    def __init__(self, base: Config) -> None:
        data, scale = base.data, base.scale
        if not data.validation:
            raise ValueError(
                "a comparison needs validation images to select the best checkpoints: "
                "for example --data.validation Kodak24"
            )
        self.base = base
        self.validation = read_images(data.validation, scale)
        self.monitored: BenchmarkSets = read_sets(data.monitor, scale)
        validation: BenchmarkSets = {"+".join(map(set_name, data.validation)): self.validation}
        self.every: BenchmarkSets = {**validation, **self.monitored, **read_sets(data.test, scale)}
        """All sets that finished networks are scored on; the first one is the validation's."""

    @property
    def chooses(self) -> str:
        """Name of the validation's."""
        return next(iter(self.every))

    def without_others(self) -> "ScoredSets":
        """The validation's alone."""
        alone = copy.copy(self)
        alone.monitored, alone.every = {}, {self.chooses: self.validation}
        return alone

    def score(self, network: Network) -> StoredScores:
        """The mean scores of a network over each set."""
        data, device = self.base.data, pick_device(self.base.train.device)
        network.to(device)
        scores = {
            name: score_network(
                network, pairs_of(images, network.scale, data.rounding, noise_sigma=data.noise_sigma, device=device)
            )
            for name, images in self.every.items()
        }
        return {name: json_safe(average(list(one.values()))) for name, one in scores.items()}

    def score_once(self, network: Network, kept: Path) -> StoredScores:
        """The same, kept in a file."""
        if not kept.is_file():
            scores = self.score(network)
            distributed.on_rank0(lambda: write_json(kept, scores))
        with name_damaged(kept):
            result: StoredScores = json.loads(kept.read_text(encoding="utf-8"))
        return result
