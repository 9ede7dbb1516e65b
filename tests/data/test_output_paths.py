"""Every image gets a file of its own, with a name that file systems take."""

import os
from pathlib import Path

import pytest

from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.output_paths import flat_stems, name_outputs


def named(*names: str) -> list[str]:
    outputs = name_outputs({name: Path(name).with_suffix(".png") for name in names})
    assert list(outputs) == list(names)
    return [str(path) for path in outputs.values()]


def test_names_stay_as_they_are_where_they_can() -> None:
    assert named("a/b.jpg", "a/b.v1.png", "b.png", "a_b.tif") == ["a/b.png", "a/b.v1.png", "b.png", "a_b.png"]
    longest = 251 * "x"
    assert named(f"{longest}.jpg") == [f"{longest}.png"]


@pytest.mark.parametrize(
    "rivals",
    [("x.png", "x.jpg"), ("a/X.png", "a/x.png"), ("e\u0301.png", "\xe9.png"), ("x.jpg", "x.png", "x.tif", "X.bmp")],
)
def test_rivals_get_names_of_their_own_on_any_file_system(rivals: tuple[str, ...]) -> None:
    names = named(*rivals, "other.png")
    assert len({name.casefold() for name in names}) == len(names)
    assert names[-1] == "other.png"
    assert named(*reversed(rivals), "other.png")[:-1] == names[-2::-1], "the order of the images changes nothing"


@pytest.mark.parametrize("stem", [300 * "x", 100 * "日", 260 * "x" + ".v1", os.fsdecode(300 * b"\xe9")])
def test_long_names_are_cut_and_stay_apart(stem: str) -> None:
    names = named(f"{stem}1.png", f"{stem}2.png")
    assert len(set(names)) == 2
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".png") for name in names)


def test_stems_of_one_folder_never_meet() -> None:
    names = ["a/b_c.png", "a_b/c.png", "x.png", "x.jpg", "Y.png", "y.png", "set/sub/z.v1.png", f"set/{240 * 'z'}.png"]
    stems = flat_stems(names)
    assert len({stem.casefold() for stem in stems.values()}) == len(names)
    assert stems["set/sub/z.v1.png"] == "set_sub_z.v1"
    assert max(map(len, stems.values())) <= 200


@pytest.mark.parametrize("name", [251 * "x" + ".png", 83 * "日" + ".jpg", 250 * "x" + ".webp"])
def test_the_longest_names_are_written(name: str, photo: Pixels, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    write_png(tmp_path / "HR" / "a.png", photo[:16, :16])
    (tmp_path / "HR" / "a.png").rename(tmp_path / "HR" / name)
    assert main(["downsample", str(tmp_path / "HR"), str(tmp_path / "LR"), "--scale", "2"]) == 0
    (written,) = (tmp_path / "LR").iterdir()
    assert written.name == f"{Path(name).stem}.png"
    assert read_image(written).shape == (8, 8, 3)
