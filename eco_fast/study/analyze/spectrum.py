"""`eco-fast analyze spectrum`: patches and their losses' gradients by spatial frequency (paper, appendix C, Figure 9).

As in the paper, images first go through the Fourier transform and back, and the gradient of the loss is taken with
respect to the spectrum in between:

    input  --fft2--> X --ifft2--> network --> prediction --+
    target --fft2--> T --ifft2-----------------------------+--> loss

Input and target are those of the objective: LR and HR under vanilla, blended with the centroid's under eco. With
respect to the HR image alone, the gradient is alpha times the target's.

**Convention.** Transforms are orthonormal. torch's gradient with respect to a complex z = x + iy is dL/dx + i dL/dy;
for a real image behind an orthonormal transform that is the transform of the image's own gradient, of the same energy
(Parseval). Magnitudes are averaged over patches before any logarithm: where a network is below the target in all of a
patch, the gradient of L1 is constant, and its other magnitudes are 0. Patches are not windowed: their borders show as a
cross through the centre.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from eco_fast_kernels import blended_loss, margin_of
from eco_fast_kernels.reference import blend_lr
from torch import Tensor, nn

from eco_fast.config import Config
from eco_fast.data.batch import Samples
from eco_fast.study.analyze.runs import Run, open_runs, recipe_at
from eco_fast.study.analyze.spectrum_report import NAMES, Spectra, write_spectra
from eco_fast.training.precision import set_precision
from eco_fast.training.step import network_input
from eco_fast.utils.progress import track

LossOf = Callable[[Tensor, Tensor], Tensor]
"""Maps inputs [N, 3, h, w] and targets [N, 3, H, W], both 0..1, to the sum of the patches' mean losses, []."""
SAME = ("scale", "model.", "data.patch")


@dataclass(frozen=True)
class Case:
    """A loss: the weights of a run under an objective."""

    name: str
    run: Run
    objective: str


def spectrum(
    folders: Sequence[Path], out: Path, checkpoint: str, batches: int, objectives: Sequence[str] | None = None
) -> None:
    """Write mean spectra of training patches and of their gradients.

    Args:
        folders: runs of networks of the same architecture and scale.
        out: folder of the results.
        checkpoint: last, best, or the number of steps done at a kept one; 0: the initial weights.
        batches: training batches to average over, from the checkpoint's step on.
        objectives: their losses on the weights of a single run; None: each run's own.

    Raises:
        ValueError: bad arguments, or runs that cannot be compared.
    """
    if batches < 1:
        raise ValueError(f"--batches: expected at least 1, got {batches}")
    found = []
    for case in track(cases(open_runs(folders, SAME), objectives), description="spectrum"):
        network, step = case.run.network(int(checkpoint) if checkpoint.isdecimal() else checkpoint)
        recipe = recipe_at(case.run.config, step, case.objective)
        set_precision(recipe.train, case.run.device)
        planes, loss = mean_spectra(network, recipe, case.run.batches(recipe, step, batches))
        patches = batches * recipe.train.batch_size
        found.append(Spectra(case.name, step, recipe.objective.alpha_value, loss, patches, planes))
    write_spectra(out, found)
    for one in found:
        print(f"{one.name}: step {one.step}, alpha {one.alpha:.3g}, loss {one.loss:.3f} over {one.patches} patches")
    print(f"numbers and plots: {out}")


def cases(runs: Sequence[Run], objectives: Sequence[str] | None) -> list[Case]:
    """The losses, each with a name of its own.

    Raises:
        ValueError: objectives with several runs.
    """
    if objectives is None:
        own = [run.objective for run in runs]
        names = [
            f"{run.objective} seed={run.config.seed}" if own.count(run.objective) > 1 else run.objective for run in runs
        ]
        return [Case(name, run, run.objective) for name, run in zip(names, runs, strict=True)]
    if len(runs) > 1:
        raise ValueError(f"--objectives takes the weights of one RUN, got {len(runs)}; name one")
    return [Case(name, runs[0], name) for name in dict.fromkeys(objectives)]


def mean_spectra(
    network: nn.Module, recipe: Config, batches: Sequence[Samples]
) -> tuple[dict[str, npt.NDArray[np.float64]], float]:
    """Mean magnitudes over patches and colours.

    Args:
        network: frozen, in evaluation mode.
        recipe: determines input, target and loss.
        batches: the patches, on the network's device.

    Returns:
        By the names of `NAMES`, zero frequency in the centre, float64: input and input_gradient [h, w], target and
        target_gradient [H, W]. Images are 0..1; gradients are of each patch's own loss, in grey levels per unit.
        And the mean loss, on the 0..255 scale.
    """
    sums = {name: torch.zeros(()) for name in NAMES}
    total = 0.0
    for batch in batches:
        inputs, targets = network_input(batch, recipe.scale, recipe.data), target_of(batch, recipe.scale)
        loss, found = spectra(loss_of(network, recipe, batch), inputs, targets)
        sums = {name: sums[name] + mean_magnitude(one) for name, one in zip(NAMES, found, strict=True)}
        total += loss / len(inputs)
    planes = {name: (one / len(batches)).numpy() for name, one in sums.items()}
    return planes, total / len(batches)


def spectra(loss_of: LossOf, inputs: Tensor, targets: Tensor) -> tuple[float, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Send images through their spectra into a loss.

    Args:
        loss_of: see `LossOf`.
        inputs: float32 [N, 3, h, w], 0..1.
        targets: float32 [N, 3, H, W], 0..1.

    Returns:
        The loss, and spectra of inputs and targets and the loss's gradients with respect to them, complex64, of the
        images' shapes, zero frequency first.
    """
    x, lr = through_spectrum(inputs)
    t, hr = through_spectrum(targets)
    loss = loss_of(lr, hr)
    of_x, of_t = torch.autograd.grad(loss, (x, t))
    return loss.item(), (x.detach(), t.detach(), of_x, of_t)


def through_spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """The spectrum of images [..., h, w], a leaf that requires its gradient, and the images made from it again."""
    found = torch.fft.fft2(images, norm="ortho").detach().requires_grad_()
    return found, torch.fft.ifft2(found, norm="ortho").real


def loss_of(network: nn.Module, recipe: Config, batch: Samples) -> LossOf:
    """The training's own loss of a batch, as a function of its images.

    The target enters as its difference from the batch's own, for the loss depends on prediction - target alone.
    """
    own = target_of(batch, recipe.scale)

    def of(inputs: Tensor, targets: Tensor) -> Tensor:
        prediction = network(inputs.contiguous(memory_format=torch.channels_last)) - (targets - own)
        prediction = prediction.contiguous(memory_format=torch.channels_last)
        margin, kind = margin_of(recipe.scale), recipe.objective.loss
        loss, _ = blended_loss(prediction, batch.hr, batch.sr, batch.target_alpha, kind, margin=margin)
        return loss * len(inputs)

    return of


def target_of(batch: Samples, scale: int) -> Tensor:
    """The target of the prediction: float32 [N, 3, H, W], 0..1."""
    inner = slice(margin_of(scale), -margin_of(scale))
    hr, sr = (None if crops is None else crops[:, inner, inner] for crops in (batch.hr, batch.sr))
    target: Tensor = blend_lr(hr, sr, batch.target_alpha)
    return target


def mean_magnitude(spectrum: Tensor) -> Tensor:
    """Mean |z| over patches and colours of complex [N, C, h, w]: float64 [h, w], zero frequency in the centre."""
    shifted: Tensor = torch.fft.fftshift(spectrum.abs().double().mean(dim=(0, 1)))
    return shifted.cpu()
