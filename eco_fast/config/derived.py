"""Recipes that follow from another one."""

from eco_fast.config.schema import Config


def vanilla(config: Config) -> Config:
    """The same recipe on real pairs alone: same steps, samples and initial weights."""
    objective = config.objective.model_copy(update={"name": "vanilla"})
    return config.model_copy(update={"objective": objective})


def self_teacher(config: Config) -> Config:
    """The recipe of teacher.checkpoint = "self": vanilla, with its own number of steps and its own seed."""
    train = config.train.model_copy(update={"steps": config.teacher.steps})
    return vanilla(config).model_copy(update={"train": train, "seed": config.seed + 1})
