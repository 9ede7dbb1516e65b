"""Score a checkpoint on folders of HR images.

python examples/score_folder.py CHECKPOINT FOLDER...
"""

import sys

from eco_fast import evaluate


def main(checkpoint: str, *folders: str) -> None:
    """Print each set's mean, and the image that the network does worst on."""
    for folder, scores in evaluate(checkpoint, folders).items():
        worst = min(scores, key=lambda name: scores[name].psnr_y)
        print(f"{folder}: {scores.mean.psnr_y:.2f} dB, {scores.mean.ssim_y:.4f}; worst is {worst}")


if __name__ == "__main__":
    main(*sys.argv[1:])
