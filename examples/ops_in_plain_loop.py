"""The fused ops in a plain PyTorch loop, without the trainer.

python examples/ops_in_plain_loop.py [STEPS] [DEVICE]

ECO on one image: crops cut where it lies, the blended LR input, the loss against the blended target. On a GPU each is
one or two Triton kernels; kernels/README.md has their contracts.
"""

import sys

import torch
from eco_fast_kernels import Orientation, blended_loss, crop_side, cut_crops, downsample_blend, margin_of
from skimage import data
from torch import Tensor, nn

SCALE, PATCH, BATCH = 2, 24, 8
SIDE, MARGIN = crop_side(SCALE, PATCH), margin_of(SCALE)


def plan(height: int, width: int, device: str) -> Tensor:
    """Where random crops of one image begin, and how they are turned: int64 [BATCH, 7], see `PlanColumn`."""
    top = torch.randint(height - SIDE, (BATCH,))
    left = torch.randint(width - SIDE, (BATCH,))
    turned = torch.randint(int(Orientation.TRANSPOSE), (BATCH,))  # any of the flips
    image = torch.tensor([0, 3 * width, height, width]).expand(BATCH, 4)
    return torch.cat([image, torch.stack([top, left, turned], dim=1)], dim=1).to(device)


def main(steps: int | str = 100, device: str = "cpu") -> list[float]:
    """Train a few layers from a blurred image, which stands for the centroid, to the real one; returns the losses."""
    steps = int(steps)
    torch.manual_seed(0)
    hr = torch.tensor(data.astronaut(), device=device)
    blurred = nn.functional.avg_pool2d(hr.permute(2, 0, 1).float(), 3, 1, padding=1)
    centroid = blurred.round().to(torch.uint8).permute(1, 2, 0).contiguous()
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE)
    )
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        alpha = torch.tensor(step / steps, device=device)  # weight of the real pair
        places = plan(hr.shape[0], hr.shape[1], device)
        real, noise_free = (cut_crops(image.view(-1), places, SIDE, MARGIN) for image in (hr, centroid))
        lr = downsample_blend(real, noise_free, alpha, SCALE)
        prediction = network(lr).contiguous(memory_format=torch.channels_last)
        loss, _ = blended_loss(prediction, real, noise_free, alpha, "l1", margin=MARGIN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.1f} grey levels at the first step, {losses[-1]:.1f} at the last")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
