"""The downsample command against MATLAB's own files and against exact fractions."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from tests.data.matlab_sets import matlab_files

Lines = list[list[Fraction]]


def kernel(x: Fraction) -> Fraction:
    """Keys' cubic with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    return -(x**3) / 2 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)


def shrink(lines: Lines, scale: int) -> Lines:
    """MATLAB's antialiased bicubic along the first axis, in exact fractions; positions count from 1."""
    size, out = len(lines), []
    for position in range(1, math.ceil(size / scale) + 1):
        centre = position * scale + Fraction(1 - scale, 2)
        taps = range(math.floor(centre) - 2 * scale, math.floor(centre) + 2 * scale + 2)
        weights = [kernel((centre - tap) / scale) for tap in taps]
        there_and_back = [*range(size), *reversed(range(size))]
        sources = [lines[there_and_back[(tap - 1) % (2 * size)]] for tap in taps]
        columns = zip(*sources, strict=True)
        out.append(
            [
                sum((w * v for w, v in zip(weights, column, strict=True)), Fraction(0)) / sum(weights)
                for column in columns
            ]
        )
    return out


def imresize_by_hand(plane: Pixels, scale: int, rounding: str) -> list[list[int]]:
    """`imresize(plane, 1/scale)` of uint8 [H, W]."""

    def rounded(lines: Lines) -> Lines:
        return [[Fraction(min(max(math.floor(v + Fraction(1, 2)), 0), 255)) for v in line] for line in lines]

    lines = shrink([[Fraction(int(v)) for v in line] for line in plane], scale)
    lines = rounded(lines) if rounding == "uint8" else lines
    columns = rounded(shrink([list(column) for column in zip(*lines, strict=True)], scale))
    return [[int(v) for v in line] for line in zip(*columns, strict=True)]


@pytest.mark.parametrize("rounding", ["uint8", "im2double"])
@pytest.mark.parametrize(("scale", "size"), [(2, (7, 10)), (3, (10, 8)), (4, (9, 13)), (8, (17, 9))])
def test_a_file_equals_exact_fractions_of_the_cropped_image(
    scale: int, size: tuple[int, int], rounding: str, tmp_path: Path
) -> None:
    image = np.random.default_rng(scale).choice(np.array([0, 1, 128, 254, 255], dtype=np.uint8), (*size, 3))
    write_png(tmp_path / "hr.png", image)
    command = ["downsample", str(tmp_path / "hr.png"), str(tmp_path / "lr.png"), "--scale", str(scale)]
    assert main([*command, "--rounding", rounding]) == 0
    lr = read_image(tmp_path / "lr.png")
    height, width = size[0] // scale, size[1] // scale
    assert lr.shape == (height, width, 3)
    image = image[: height * scale, : width * scale]
    for channel in range(3):
        assert lr[:, :, channel].tolist() == imresize_by_hand(image[:, :, channel], scale, rounding)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("matlab_set", ["in repository", "Set5"], indirect=True)
def test_a_benchmark_folder_equals_matlabs_files(scale: int, matlab_set: Path, tmp_path: Path) -> None:
    assert main(["downsample", str(matlab_set / "HR"), str(tmp_path), "--scale", str(scale)]) == 0
    pairs = matlab_files(matlab_set, scale)
    assert sorted(file.name for file in tmp_path.iterdir()) == [hr.name for hr, _ in pairs]
    for hr, lr in pairs:
        assert np.array_equal(np.array(Image.open(tmp_path / hr.name)), np.array(Image.open(lr))), hr.name


def test_a_folder_keeps_its_layout_and_its_images(
    photo: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "HR"
    for name in ("a.png", "b/a.jpg", "b/c.bmp"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[:12, :14]).save(source / name)
    assert main(["downsample", str(source), str(tmp_path / "LR"), "--scale", "2"]) == 0
    files = sorted(str(file.relative_to(tmp_path / "LR")) for file in (tmp_path / "LR").rglob("*.*"))
    assert files == ["a.png", "b/a.png", "b/c.png"]
    assert main(["downsample", str(source), str(source), "--scale", "2"]) == 2
    assert "a.png would be overwritten" in capsys.readouterr().err
    assert read_image(source / "a.png").shape == (12, 14, 3)


def test_two_images_of_one_stem_get_a_file_each(photo: Pixels, tmp_path: Path) -> None:
    for place, name in enumerate(("a.png", "a.bmp", "b.png")):
        write_png(tmp_path / "HR" / name, photo[place : place + 8, :8])
    assert main(["downsample", str(tmp_path / "HR"), str(tmp_path / "LR"), "--scale", "2"]) == 0
    written = sorted((tmp_path / "LR").iterdir())
    assert len(written) == 3
    assert written[-1].name == "b.png"
    assert len({read_image(file).tobytes() for file in written}) == 3
