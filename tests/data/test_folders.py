"""Folders become lists of images: links are followed, what is left out is said, and nothing is lost in silence."""

import os
from pathlib import Path

import pytest

from eco_fast.cli.main import main
from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.store import Store


def place(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_images_is_ordered_nested_and_blind_to_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "set"
    place(*(root / name for name in ("b.png", "a.JPG", "sub/deep/c.webp", "sub/a.tif", ".hidden.png", ".cache/d.png")))
    (root / "notes.txt").write_text("no image", encoding="utf-8")
    (root / "folder.png").mkdir()
    found = find_images([root])
    assert list(found) == ["set/a.JPG", "set/b.png", "set/sub/a.tif", "set/sub/deep/c.webp"]
    assert found["set/sub/a.tif"] == root / "sub" / "a.tif"


def test_find_images_takes_several_sources_in_their_order(tmp_path: Path) -> None:
    place(tmp_path / "two" / "b.png", tmp_path / "one" / "a.png")
    sources: list[str | Path] = [tmp_path / "two", tmp_path / "one" / "a.png", "builtin:validation", tmp_path / "one"]
    assert list(find_images(sources)) == ["two/b.png", "one/a.png", "builtin/camera.png"]


def test_find_images_takes_a_source_inside_a_hidden_folder(tmp_path: Path) -> None:
    place(tmp_path / ".data" / "set" / "a.png")
    assert list(find_images([tmp_path / ".data" / "set"])) == ["set/a.png"]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    place(tmp_path / "one" / "HR" / "a.png", tmp_path / "two" / "HR" / "a.png")
    with pytest.raises(ValueError, match=r"two/HR/a\.png and .*one/HR/a\.png would both be called HR/a\.png"):
        find_images([tmp_path / "one" / "HR", tmp_path / "two" / "HR"])


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no images \(.*\.png"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ValueError, match="gone: there is no such file or folder"):
        find_images([tmp_path / "gone"])
    with pytest.raises(ValueError, match="builtin:tests: the built-in sets are builtin:train, builtin:validation, "):
        find_images(["builtin:tests"])


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    place(tmp_path / "far" / "sub" / "a.png", tmp_path / "b.png", tmp_path / "set" / "c.png")
    (tmp_path / "set" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "relative").symlink_to("../far/sub")  # the same folder again
    (tmp_path / "set" / "b.png").symlink_to("../b.png")
    (tmp_path / "whole").symlink_to("set")
    names = ["b.png", "c.png", "far/sub/a.png"]
    for source in ("set", "whole"):
        assert list(find_images([tmp_path / source])) == [f"set/{name}" for name in names]


@pytest.mark.parametrize("target", [".", "..", "../..", "sub", "../other", "/"])
def test_loops_of_links_end(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path / "set" / "a.png", tmp_path / "set" / "sub" / "b.png", tmp_path / "other" / "c.png")
    (tmp_path / "other" / "back").symlink_to("../set")
    (tmp_path / "set" / "link").symlink_to(target)
    found = list(find_images([tmp_path / "set"]))
    assert found == ["set/a.png", *(["set/link/c.png"] if target == "../other" else []), "set/sub/b.png"]
    assert f"{tmp_path / 'set'}: 1 left out (1 links to folders that are there already)" in capsys.readouterr().out


def test_links_to_nothing_are_refused(tmp_path: Path) -> None:
    place(tmp_path / "set" / "a.png")
    for name in ("b.png", "sub"):
        (tmp_path / "set" / name).symlink_to("gone")
        with pytest.raises(ValueError, match=rf"set/{name}: a link to something that is not there"):
            find_images([tmp_path / "set"])
        (tmp_path / "set" / name).unlink()


@pytest.mark.parametrize("linked", [False, True])
def test_folders_that_cannot_be_read_are_refused(linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root reads everything, the system's refusal is played."""
    place(tmp_path / "set" / "a.png", tmp_path / "far" / "b.png", tmp_path / "set" / ".Trash" / "c.png")
    closed = tmp_path / "set" / "closed"
    if linked:
        closed.symlink_to(tmp_path / "far")
    else:
        place(closed / "d.png")
    scandir = os.scandir

    def refuse(folder: Path) -> "os._ScandirIterator[str]":
        if folder.name in ("closed", ".Trash"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ValueError, match=r"set/closed: the folder cannot be read \(Permission denied\)"):
        find_images([tmp_path / "set"])


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    place(*(root / name for name in ("a.PNG", ".DS_Store", "._a.PNG", "Thumbs.db", "b.heic", "c.HEIC", "README")))
    place(*(root / name / "x.png" for name in ("@eaDir", "sub/@EADIR", "__MACOSX", "lost+found", "#recycle", ".git")))
    place(root / "runs" / "mine" / "config.toml", root / "runs" / "mine" / "curves.png")
    (root / "runs" / "mine" / "checkpoints").mkdir()
    os.mkfifo(root / "pipe.png")
    assert list(find_images([root])) == ["set/a.PNG"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    reasons = (
        "1 #recycle/, 1 .db, 2 .heic, 1 @EADIR/, 1 @eaDir/, 1 __MACOSX/, 3 hidden, 1 lost+found/, "
        "1 not regular files, 1 run folders, 1 without a suffix"
    )
    assert said == f"{root}: 14 left out ({reasons})\n"


def test_a_folder_of_other_things_says_what_it_holds(tmp_path: Path) -> None:
    place(tmp_path / "a.heic", tmp_path / ".b.png")
    with pytest.raises(ValueError, match=r"holds no images \(.*\); 2 left out \(1 \.heic, 1 hidden\)"):
        find_images([tmp_path])


def test_a_folder_inside_what_is_skipped_can_be_named(tmp_path: Path) -> None:
    run = tmp_path / "@eaDir" / "run"
    place(run / "config.toml", run / "checkpoints" / "x", run / "samples" / "a.png")
    assert list(find_images([run / "samples"])) == ["samples/a.png"]


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".ppm", ".PGM", ".tga", ".avif", ".gif", ".j2k", ".mpo", ".Dib"])
def test_readable_suffixes_are_taken_whatever_their_case(suffix: str, tmp_path: Path) -> None:
    place(tmp_path / f"a{suffix}")
    assert len(find_images([tmp_path])) == 1


NAMES = (
    b"caf\xe9.png",
    "日本.png".encode(),
    "e\u0301.png".encode(),
    b"100%d.png",
    b"a[b].png",
    b"S[/c].png",
    b"d e$f.png",
)


def test_names_of_any_encoding_reach_the_store_and_the_screen(
    photo: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / os.fsdecode(b"h\xf4r")
    for place_, name in enumerate(NAMES):
        write_png(root / os.fsdecode(name), photo[place_ : place_ + 8, :8])
    store, files = tmp_path / "store", [root / os.fsdecode(name) for name in NAMES]
    for _ in range(2):
        assert main(["prepare", str(root), "--store", str(store)]) == 0
    stored = Store(store)
    assert {entry.name for entry in stored.entries} == {f"{root.name}/{file.relative_to(root)}" for file in files}
    assert len({image.tobytes() for image in stored.images}) == len(NAMES)
    assert main(["downsample", str(root), str(tmp_path / "LR"), "--scale", "2"]) == 0
    assert {file.name for file in (tmp_path / "LR").rglob("*.png")} == {file.name for file in files}
    capsys.readouterr()
    files[0].write_bytes(b"no image")
    assert main(["prepare", str(root), "--store", str(store)]) == 2
    said = capsys.readouterr().err
    assert "not an image" in said
    assert "caf" in said
