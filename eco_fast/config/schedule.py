"""The course of the learning rate."""

import math

from eco_fast.config.schema import Optimizer


def learning_rate_at(config: Optimizer, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0, in a run of `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * 0.5 ** (step // config.step_size)
    if config.schedule == "milestones":
        return float(config.learning_rate * 0.5 ** sum(step >= milestone for milestone in config.milestones))
    return config.learning_rate
