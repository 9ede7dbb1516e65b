"""What the ops of `op_cases.py` get: on the CPU, the same at each call, in any number of samples."""

import torch
from eco_fast_kernels import Orientation, PlanColumn, StepState, crop_side, empty_crops, margin_of
from torch import Tensor

SCALE, LR_SIDE, WINDOW_SIDE, HEADS, FEATURES = 2, 24, 8, 6, 60  # channels and heads are SwinIR's
SHAPES = ((64, 64, 3, 3), (64,), (3, 64, 3, 3), (3,))


def seeded() -> torch.Generator:
    """The same random numbers at each call."""
    return torch.Generator().manual_seed(20)


def random_crops(samples: int) -> Tensor:
    """Crops with their margin, laid out as loaders lay them."""
    crops = empty_crops(samples, crop_side(SCALE, LR_SIDE), margin_of(SCALE))
    return crops.copy_(torch.randint(0, 256, crops.shape, generator=seeded(), dtype=torch.uint8))


def crop_pair(samples: int) -> list[Tensor]:
    """hr, sr, and alpha for each sample."""
    crops = random_crops(samples)
    return [crops, crops.flip(1), torch.rand(samples, generator=seeded())]


def predictions(samples: int) -> list[Tensor]:
    """Those, and a prediction with a gradient."""
    prediction = torch.rand(samples, 3, SCALE * LR_SIDE, SCALE * LR_SIDE, generator=seeded())
    return [*crop_pair(samples), prediction.contiguous(memory_format=torch.channels_last)]


def images_and_plan(samples: int) -> list[Tensor]:
    """Crops in all orientations of one image, some of them over its edges."""
    side, height, width = crop_side(SCALE, LR_SIDE), 3 * LR_SIDE, 4 * LR_SIDE
    plan = torch.zeros(samples, len(PlanColumn), dtype=torch.int64)
    plan[:, [PlanColumn.ROW_BYTES, PlanColumn.HEIGHT, PlanColumn.WIDTH]] = torch.tensor([3 * width, height, width])
    plan[:, PlanColumn.TOP] = torch.arange(samples) * 7 % (height - side + 8) - 4
    plan[:, PlanColumn.LEFT] = torch.arange(samples) * 11 % (width - side + 8) - 4
    plan[:, PlanColumn.ORIENTATION] = torch.arange(samples) % (sum(Orientation) + 1)
    return [torch.randint(0, 256, (3 * height * width,), generator=seeded(), dtype=torch.uint8), plan]


def a_step(samples: int) -> list[Tensor]:
    """Gradients, a loss, and the state before the step."""
    gradients = torch.randn(samples * 100_000, generator=seeded())
    return [gradients, torch.tensor(3.0), *StepState.at_start("cpu", places=10, scale=8.0)]


def lamb_tensors(samples: int) -> list[Tensor]:
    """Weights, gradients, both moments and averages."""
    made = []
    for kind in range(5):
        generator = seeded().manual_seed(kind)
        made += [torch.randn(shape, generator=generator).abs() * 0.1 for shape in SHAPES * samples]
    return made


def pattern(_: int) -> list[Tensor]:
    """An image that any rounding changes otherwise: uint8 [1, 48, 48, 3]."""
    places = torch.arange(48 * 48 * 3, dtype=torch.int64)
    return [(places * places % 251 + places // 7 % 5).to(torch.uint8).view(1, 48, 48, 3)]


def windows(samples: int) -> list[Tensor]:
    """Queries, keys and values of images, and the bias of relative positions."""
    qkv = torch.randn(samples, 2 * WINDOW_SIDE, 3 * WINDOW_SIDE, 3 * FEATURES, generator=seeded())
    return [qkv, torch.randn(HEADS, WINDOW_SIDE**2, WINDOW_SIDE**2, generator=seeded())]


def tokens(samples: int) -> list[Tensor]:
    """Tokens, and the weight and bias of a linear layer."""
    made = torch.randn(samples, 2 * WINDOW_SIDE, 3 * WINDOW_SIDE, FEATURES, generator=seeded())
    weight = torch.randn(2 * FEATURES, FEATURES, generator=seeded()) / 8
    return [made, weight, torch.randn(2 * FEATURES, generator=seeded())]


def feature_maps(samples: int) -> list[Tensor]:
    """Two maps of a residual network in bf16, channels_last, and a bias of its channels."""
    maps = [torch.randn(samples, 64, LR_SIDE, LR_SIDE, generator=seeded().manual_seed(seed)) for seed in range(2)]
    bias = torch.randn(64, generator=seeded()) / 8
    return [*(one.to(torch.bfloat16, memory_format=torch.channels_last) for one in maps), bias]


def token_rows(samples: int) -> list[Tensor]:
    """A residual stream and a branch of a transformer, and three vectors of its channels."""
    shape = (samples, 2 * WINDOW_SIDE, 3 * WINDOW_SIDE, FEATURES)
    rows = [torch.randn(shape, generator=seeded().manual_seed(seed)) for seed in range(2)]
    return [*rows, *(torch.randn(FEATURES, generator=seeded().manual_seed(seed)) for seed in range(2, 5))]


def window_tokens(samples: int) -> list[Tensor]:
    """Queries, keys and values of images, their bias, and the table of relative positions."""
    qkv = torch.randn(samples, 2 * WINDOW_SIDE, 3 * WINDOW_SIDE, 3 * FEATURES, generator=seeded())
    table = torch.randn((2 * WINDOW_SIDE - 1) ** 2, HEADS, generator=seeded())
    return [qkv, torch.randn(3 * FEATURES, generator=seeded()), table]
