"""Typed recipes."""

from eco_fast.config.loading import Overrides, assignment, changed, check, differences, dump, flat, load, validate
from eco_fast.config.model_sections import EdsrModel, Model, OwnModel, RcanModel, RrdbModel, SwinirModel
from eco_fast.config.schema import (
    Config,
    Data,
    Objective,
    Optimizer,
    Paper,
    Scale,
    Score,
    Teacher,
    Train,
)

__all__ = [
    "Config",
    "Data",
    "EdsrModel",
    "Model",
    "Objective",
    "Optimizer",
    "Overrides",
    "OwnModel",
    "Paper",
    "RcanModel",
    "RrdbModel",
    "Scale",
    "Score",
    "SwinirModel",
    "Teacher",
    "Train",
    "assignment",
    "changed",
    "check",
    "differences",
    "dump",
    "flat",
    "load",
    "validate",
]
