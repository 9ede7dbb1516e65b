"""Upscale an image that is a NumPy array.

python examples/upscale_array.py CHECKPOINT IMAGE OUT
"""

import sys

import numpy as np
from PIL import Image

from eco_fast import load_network, super_resolve


def main(checkpoint: str, source: str, out: str) -> None:
    """Load a network once; then every array of uint8 RGB goes through it."""
    network = load_network(checkpoint)
    lr = np.array(Image.open(source).convert("RGB"))
    sr = super_resolve(network, lr)
    print(f"{lr.shape[1]}x{lr.shape[0]} to {sr.shape[1]}x{sr.shape[0]} pixels")
    Image.fromarray(sr).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
