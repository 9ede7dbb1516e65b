"""The training loop: one network, one objective, one run folder.

    eco-fast train                                                   the quick start
    eco-fast train edsr_baseline_x2_eco --set data.train='["DIV2K_train_HR"]'
    eco-fast train --run runs/quickstart --resume

`pipeline.py` runs it for the teacher, the student and the twin. Per step, everything stays on the device:

    windows --downsample_blend--> input --network--> prediction --blended_loss--> loss --backward--> update
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from eco_fast_kernels import blend_lr, blended_loss, downsample_blend, margin_of
from torch import Tensor

from eco_fast.batch import Batch
from eco_fast.config import Config
from eco_fast.data import Pictures, open_loader
from eco_fast.device import pick_device, why_not_compile
from eco_fast.evaluate import finite, score_network
from eco_fast.images import Pixels
from eco_fast.metrics import average
from eco_fast.models import Network, build, warm_start
from eco_fast.optim import Updater, learning_rate_at
from eco_fast.run_folder import RunFolder
from eco_fast.telemetry import Telemetry

MAX_SKIPPED_IN_ROW = 100

LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def train_network(
    run: RunFolder, hr: Pictures, sr: Pictures | None, validation: Mapping[str, Pixels], label: str = "train"
) -> Network:
    """Train to the end of the recipe, from the last checkpoint if there is one.

    Args:
        run: the folder, with the recipe.
        hr: the pictures.
        sr: their centroids, where the objective needs them.
        validation: HR pictures by name, scored every `validate_every` steps.
        label: precedes every progress line.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        ValueError: the run cannot go on; says why.
    """
    config = run.config
    steps = config.train.steps
    device = pick_device(config.train.device)
    torch.manual_seed(config.seed)
    network = build(config.model, config.scale)
    start, best, saved = 0, float("-inf"), run.load(device)
    if config.model.start_from and saved is None:
        kept = warm_start(network, Path(config.model.start_from))
        print(f"{label} starts from {config.model.start_from}; fresh weights: {', '.join(kept) or 'none'}", flush=True)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    updater = Updater(network.parameters(), config.optimizer, device, compiled=config.train.compile)
    if saved is not None:
        start, best = saved["step"], saved["best"]
        network.load_state_dict(saved["network"])
        updater.load_state_dict(saved["updater"])
        print(f"{label} continues at step {start} of {steps}", flush=True)
    run.rewind(start)
    if start == steps:
        return network.eval()

    compute_loss = loss_function(network, config, device)
    with (
        open_loader(config, hr, sr, start, device=device, label=label) as loader,
        Telemetry(run, loader, device, start, label) as telemetry,
    ):
        if saved is not None:
            telemetry.load_state_dict(saved["telemetry"])
        for batch in loader:
            learning_rate = learning_rate_at(config.optimizer, batch.step, steps)
            loss, is_finite = batch_loss(compute_loss, batch.to(device), config)
            loss.backward()  # type: ignore[no-untyped-call]
            skip = updater.step(loss, is_finite, learning_rate)
            telemetry.add(loss, skip)

            done = batch.step + 1
            last = done == steps
            if last or done % config.train.log_every == 0:
                alpha = batch.mix.target
                telemetry.report(done, alpha=alpha, learning_rate=learning_rate, skipped=updater.skipped)
                check_progress(updater)
            improved = False
            if validation and (last or done % config.train.validate_every == 0):
                scores = average(list(score_network(network, validation, config.data.rounding, device=device).values()))
                telemetry.write(done, {name: finite(scores)[name] for name in ("psnr_y", "ssim_y")})
                print(
                    f"{label} step {done}/{steps}  validation {scores.psnr_y:.3f} dB  {scores.ssim_y:.4f}", flush=True
                )
                improved, best = scores.psnr_y > best, max(scores.psnr_y, best)
                network.train()
            if improved or last or done % config.train.checkpoint_every == 0:
                state: dict[str, Any] = {"updater": updater.state_dict(), "telemetry": telemetry.state_dict()}
                for name in ("best", "last") if improved else ("last",):  # a run stopped between them writes both anew
                    run.save(name, network, done, {"best": best, **state})
                telemetry.restart_clock(done)
    return network.eval()


def loss_function(network: Network, config: Config, device: str) -> LossFunction:
    """Network and loss as one function of (input, hr, sr, alpha), compiled where that is possible and wanted.

    It returns the loss, float32 [], and whether it is finite, bool [].
    """
    margin = margin_of(config.scale)

    def compute(lr: Tensor, hr: Tensor, sr: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        return blended_loss(network(lr), hr, sr, alpha, config.objective.loss, margin=margin)

    if not config.train.compile:
        return compute
    if reason := why_not_compile(device):
        print(f"not compiled: {reason}; the run is slower, its results are the same up to rounding", flush=True)
        return compute
    torch.compiler.reset()  # earlier networks of this process would count against the limit of recompilations
    return torch.compile(compute, fullgraph=True, dynamic=False)


def batch_loss(compute_loss: LossFunction, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """Blend the network's input and compute one batch's loss, float32 [], and whether it is finite, bool []."""
    lr = network_input(batch, config)
    # An image that the mix does not read has no weight: the other stands in, and one compiled graph serves all steps.
    # It does so as a tensor of its own: the same object given twice would be another graph.
    present = batch.hr if batch.hr is not None else batch.sr
    assert present is not None  # noqa: S101 - a mix reads at least one of them
    hr, sr = (present.detach() if image is None else image for image in (batch.hr, batch.sr))
    return compute_loss(lr, hr, sr, batch.target_alpha)


def network_input(batch: Batch, config: Config) -> Tensor:
    """The blended LR images with their noise: float32 [N, 3, patch, patch] in 0..1 (not clipped), channels_last."""
    reads_hr, reads_sr = batch.mix.input > 0, batch.mix.input < 1
    if config.data.downsample == "dali":
        lr = blend_lr(batch.lr_of_hr if reads_hr else None, batch.lr_of_sr if reads_sr else None, batch.input_alpha)
    else:
        lr = downsample_blend(
            batch.hr if reads_hr else None,
            batch.sr if reads_sr else None,
            batch.input_alpha,
            config.scale,
            config.data.rounding,
            transposed=batch.transposed,
        )
    return lr if batch.noise is None else lr + batch.noise / 255


def check_progress(updater: Updater) -> None:
    """Stop a run that no longer learns.

    Raises:
        ValueError: too many steps in a row were skipped.
    """
    if (count := int(updater.skipped_in_row.item())) >= MAX_SKIPPED_IN_ROW:
        raise ValueError(
            f"the last {count} steps were skipped: their loss or gradients were not finite, or the loss exceeded "
            "optimizer.spike_factor times the last accepted one; lower optimizer.learning_rate and go on from the "
            "last checkpoint"
        )
