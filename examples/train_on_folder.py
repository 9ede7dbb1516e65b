"""Train on a folder of HR images.

python examples/train_on_folder.py HR_FOLDER VALIDATION_FOLDER RUN_FOLDER [STEPS]

Run again, it goes on where it was. "builtin:train" and "builtin:validation" are photographs to try it with.
"""

import sys
from pathlib import Path

from eco_fast import train


def main(images: str, validation: str, folder: str, steps: str = "500") -> None:
    """Train a small EDSR x2 with its own teacher, and say what it has reached."""
    changes = {
        "data.train": [images],
        "data.validation": [validation],
        "data.test": [],  # the validation images are scored at the end
        "train.steps": int(steps),
        "teacher.steps": 3 * int(steps),
    }
    result = train("quickstart", folder, changes, resume=Path(folder).exists())
    for name, scores in result.scores.items():
        print(f"{name}: {scores.psnr_y:.2f} dB")
    print(f"weights: {result.checkpoint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
