"""What the kernels behind convolutions read and write: the compulsory bytes, and those that all threads ask for."""

import math

import pytest
import torch
from eco_fast_kernels import ChannelGradients, ChannelState, add_residual, attend_channels, bias_relu, column_sums
from eco_fast_kernels.channel_attention import attention_gradient, attention_sums
from eco_fast_kernels.epilogues import PART_PIXELS, merge_gradients, relu_gradient
from torch import Tensor

from bench import compulsory, epilogue_traffic
from bench.epilogue_traffic import CHANNELS, SQUEEZED
from bench.traffic import RECIPES_PATCH

pytestmark = pytest.mark.slow


def bytes_of(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compulsory_bytes(dtype: torch.dtype) -> None:
    """As many as the images of the contract have."""
    x, y, z = (torch.randn(1, CHANNELS, 5, 7).to(dtype) for _ in range(3))
    size, values, sums = dtype.itemsize, x.numel(), column_sums(x, 1)
    weights = epilogue_traffic.random_weights()
    state = ChannelState.empty(x, 1, SQUEEZED)
    gradients = ChannelGradients.empty(state)
    with torch.no_grad():
        assert compulsory.bias_relu(size) * values == bytes_of(x, bias_relu(x, weights.bias))
        assert compulsory.add_residual(size) * values == bytes_of(y, x, add_residual(y, x, weights.bias))
        assert compulsory.relu_gradient(size) * values == bytes_of(y, x, relu_gradient(y, x, sums, 0))
        for scaled, factor in ((False, 1.0), (True, 0.1)):
            for second in (None, z):
                made = merge_gradients(y, second, factor, None, dtype, sums, 0)
                expected = compulsory.merge_gradients(size, second=second is not None, scaled=scaled)
                assert expected * values == bytes_of(y, second, *made)
        assert compulsory.channel_sums(size) * values == bytes_of(x)
        assert compulsory.attend_channels(size) * values == bytes_of(x, y, attend_channels(x, y, weights, state, 0))
        for second in (None, z):
            made_sum = attention_sums(y, second, x, gradients, 0)
            expected = compulsory.attention_sums(size, second=second is not None)
            assert expected * values == bytes_of(y, second, x, made_sum)
        made_gradient = attention_gradient(y, weights, state, gradients, 0)
        assert compulsory.attention_gradient(size) * values == bytes_of(y, made_gradient)


def test_requested_bytes(device: str) -> None:
    """Beyond the compulsory, of every program: biases, the sums that it leaves; the weights and sums that it reads."""
    if device != "cpu":
        pytest.skip("accesses are counted in Triton's interpreter, and with a GPU the kernels are not interpreted")
    programs, values = math.ceil(RECIPES_PATCH**2 / PART_PIXELS), CHANNELS * RECIPES_PATCH**2
    row, weights = 4 * CHANNELS, 4 * 2 * CHANNELS * SQUEEZED
    small_network = row + weights + 4 * SQUEEZED + row  # biases and weights of both layers
    kept = 2 * row + 4 * SQUEEZED  # by a sample's first program
    beyond = {
        "bias_relu": row,
        "add_residual": row,
        "relu_gradient": row,
        "merge_gradients": row,
        "merge_gradients, scaled": row,
        "channel_sums": row,
        "attend_channels": small_network + programs * row + kept / programs,
        "attention_sums": 2 * row,
        # The bias, the scales, both sums; the hidden layer in, and its gradient out.
        "attention_gradient": 2 * row + weights + 4 * SQUEEZED + 2 * programs * row + kept / programs,
    }
    measured = epilogue_traffic.measure_kernels(RECIPES_PATCH)
    assert len(measured) == len(beyond)
    for name, expected in beyond.items():
        least, requested = measured[f"{name}, {CHANNELS} channels, bf16"]
        assert requested == pytest.approx(least + programs * expected / values, rel=1e-12), name
