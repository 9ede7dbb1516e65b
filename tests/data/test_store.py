"""The store of decoded images: what `prepare` writes, when it decodes again, and what it survives."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eco_fast.data.images import Pixels, read_image
from eco_fast.data.prepare import prepare
from eco_fast.data.store import JOURNAL, MANIFEST, Store, locked
from eco_fast.utils.files import file_stamp

NAMES = ["set/a.png", "set/b.png", "set/c.png", "set/sub/d.png"]
SIZES = [(5, 7), (6, 6), (3, 9), (8, 4)]


def draw(path: Path, seed: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four small images, NAMES of SIZES."""
    for seed, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        draw(tmp_path / name, seed, size)
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that `prepare` decodes, as it decodes them."""
    names: list[str] = []

    def count(path: Path, *, convert_16bit: bool = False) -> Pixels:
        names.append(path.name)
        return read_image(path, convert_16bit=convert_16bit)

    monkeypatch.setattr("eco_fast.data.decode.read_image", count)
    return names


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path, int], None]:
    """Runs `prepare` and presses Ctrl-C at the image after the first `count`."""

    def run(source: Path, store: Path, count: int) -> None:
        left = iter(range(count))

        def read(path: Path, *, convert_16bit: bool = False) -> Pixels:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return read_image(path, convert_16bit=convert_16bit)

        with monkeypatch.context() as patch:
            patch.setattr("eco_fast.data.decode.read_image", read)
            with pytest.raises(KeyboardInterrupt):
                prepare([str(source)], store)

    return run


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's modification time and content, but for the lock, which holds nothing."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def check(store: Path, source: Path) -> None:
    """Assert that the store holds exactly the images of the source, and nothing else."""
    opened = Store(store)
    assert [entry.name for entry in opened.entries] == NAMES
    for entry, pixels in zip(opened.entries, opened.images, strict=True):
        assert np.array_equal(pixels, read_image(source.parent / entry.name))
    files = {file for file in store.rglob("*") if file.is_file()}
    (table,) = store.glob("images-*.table")
    assert files == {store / ".lock", store / MANIFEST, table, *(store / entry.file for entry in opened.entries)}


def test_round_trip(pictures: Path, tmp_path: Path) -> None:
    made = prepare([str(pictures)], tmp_path / "store")
    assert len(made) == 4
    assert all(pixels.dtype == np.uint8 for pixels in made.images)
    assert not any(pixels.flags.writeable for pixels in made.images)
    check(tmp_path / "store", pictures)


def test_the_store_tells_sizes_and_hashes(pictures: Path, tmp_path: Path) -> None:
    made = prepare([str(pictures)], tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / MANIFEST).read_text(encoding="utf-8"))
    assert (manifest["format"], manifest["attributes"], manifest["images"]) == (2, {"kind": "hr"}, 4)
    for entry, name, (height, width) in zip(made.entries, NAMES, SIZES, strict=True):
        source = tmp_path / name
        assert (entry.name, entry.height, entry.width) == (name, height, width)
        assert entry.sha256 == hashlib.sha256(read_image(source).tobytes()).hexdigest()
        assert entry.origin == hashlib.sha256(source.read_bytes()).hexdigest()
        assert entry.stamp == file_stamp(source)
    pack = (tmp_path / "store/packs/00000.pack").read_bytes()
    assert pack == b"".join(read_image(tmp_path / name).tobytes() for name in NAMES)


def test_select_keeps_the_order_that_is_asked_for(pictures: Path, tmp_path: Path) -> None:
    chosen = prepare([str(pictures)], tmp_path / "store").select([NAMES[3], NAMES[1]])
    assert [entry.name for entry in chosen.entries] == [NAMES[3], NAMES[1]]
    assert [pixels.shape[:2] for pixels in chosen.images] == [SIZES[3], SIZES[1]]


def test_a_second_run_changes_nothing(pictures: Path, tmp_path: Path, decoded: list[str]) -> None:
    prepare([str(pictures)], tmp_path / "store")
    before = contents(tmp_path / "store")
    decoded.clear()
    prepare([str(pictures)], tmp_path / "store")
    assert contents(tmp_path / "store") == before
    assert decoded == []


def test_more_images_may_follow(pictures: Path, tmp_path: Path, decoded: list[str]) -> None:
    prepare([str(pictures / "a.png"), str(pictures / "c.png")], tmp_path / "store")
    decoded.clear()
    prepare([str(pictures)], tmp_path / "store")
    assert decoded == ["b.png", "d.png"]
    check(tmp_path / "store", pictures)


def test_an_interrupted_run_is_no_store_and_goes_on_where_it_was(
    pictures: Path, tmp_path: Path, interrupt: Callable[[Path, Path, int], None], decoded: list[str]
) -> None:
    interrupt(pictures, tmp_path / "store", 2)
    with pytest.raises(ValueError, match="store: an unfinished store; run the same command again to finish it"):
        Store(tmp_path / "store")
    prepare([str(pictures)], tmp_path / "store")
    assert decoded == ["c.png", "d.png"]
    check(tmp_path / "store", pictures)


def test_a_journal_that_was_cut_short_is_believed_up_to_its_last_whole_line(
    pictures: Path, tmp_path: Path, interrupt: Callable[[Path, Path, int], None], decoded: list[str]
) -> None:
    store = tmp_path / "store"
    interrupt(pictures, store, 2)
    journal = store / JOURNAL.format("")
    journal.write_bytes(journal.read_bytes()[:-30])
    interrupt(pictures, store, 1)  # once more, so that a line is written after the torn one
    prepare([str(pictures)], store)
    assert decoded == ["c.png", "d.png"]
    check(store, pictures)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_leaves_nothing_that_is_trusted(
    pictures: Path, tmp_path: Path, decoded: list[str]
) -> None:
    script = """
import os, signal, sys
from eco_fast.data import store_writer
from eco_fast.data.prepare import prepare

whole, calls = os.pwrite, iter(range(3))  # the first one is the lock's

def write(file, pixels, offset):
    if next(calls, None) is None:
        whole(file, b"half a pict", offset)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(file, pixels, offset)

os.pwrite, store_writer.JOURNAL_SECONDS = write, -1
prepare([sys.argv[1]], __import__("pathlib").Path(sys.argv[2]))
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, pictures, tmp_path / "store"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert contents(tmp_path / "store")["packs/00000.pack"][1].endswith(b"half a pict")
    with pytest.raises(ValueError, match="unfinished"):
        Store(tmp_path / "store")
    prepare([str(pictures)], tmp_path / "store")
    assert decoded == ["c.png", "d.png"]
    check(tmp_path / "store", pictures)


def test_an_interrupted_update_leaves_the_finished_store_as_it_was(
    pictures: Path, tmp_path: Path, interrupt: Callable[[Path, Path, int], None]
) -> None:
    store = tmp_path / "store"
    old = [np.array(pixels) for pixels in prepare([str(pictures)], store).images]
    draw(tmp_path / NAMES[0], 90, SIZES[0])
    draw(tmp_path / NAMES[1], 91, SIZES[1])
    interrupt(pictures, store, 1)
    assert all(np.array_equal(*pair) for pair in zip(Store(store).images, old, strict=True))
    prepare([str(pictures)], store)
    check(store, pictures)


def test_a_changed_image_alone_is_decoded_again(
    pictures: Path, tmp_path: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare([str(pictures)], tmp_path / "store")
    draw(pictures / "b.png", 99, (4, 4))
    decoded.clear()
    prepare([str(pictures)], tmp_path / "store")
    assert decoded == ["b.png"]
    assert f"{pictures / 'b.png'} has changed since it was stored: decoded again" in capsys.readouterr().out
    check(tmp_path / "store", pictures)


def test_a_touched_image_is_hashed_once_and_not_decoded(
    pictures: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([str(pictures)], tmp_path / "store")
    decoded.clear()
    hashed: list[str] = []

    def sha256_of(path: Path) -> str:
        hashed.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("eco_fast.data.prepare.sha256_of", sha256_of)
    os.utime(pictures / "b.png", ns=(1, 1))
    for _ in range(2):
        prepare([str(pictures)], tmp_path / "store")
    assert (hashed, decoded) == (["b.png"], [])
    check(tmp_path / "store", pictures)


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every SHA-256 that is begun."""
    begun: list[int] = []
    sha256 = hashlib.sha256

    def counted(*data: bytes) -> Any:
        begun.append(len(begun))
        return sha256(*data)

    monkeypatch.setattr(hashlib, "sha256", counted)
    return begun


def test_a_store_of_800_images_is_opened_and_prepared_again_without_hashing(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many").mkdir()
    for index in range(800):
        Image.new("RGB", (4, 4), (index % 256, index // 256, 7)).save(tmp_path / "many" / f"{index}.bmp")
    prepare([str(tmp_path / "many")], tmp_path / "store")
    decoded.clear()
    begun = count_hashes(monkeypatch)
    assert len(Store(tmp_path / "store")) == 800
    assert len(prepare([str(tmp_path / "many")], tmp_path / "store")) == 800
    assert (len(begun), decoded) == (3 * 2 + 2, [])  # manifest and table, whenever they are read, and once to compare
    begun.clear()
    prepare([str(tmp_path / "many")], tmp_path / "store", verify=True)
    assert (len(begun), decoded) == (800 + 2 * 2 + 2, [])


def test_a_copied_store_is_hashed_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has other modification times: all are hashed, found intact, and trusted from then on."""
    prepare([str(pictures)], tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy", copy_function=shutil.copyfile)
    begun = count_hashes(monkeypatch)
    prepare([str(pictures)], tmp_path / "copy")
    first = len(begun)
    prepare([str(pictures)], tmp_path / "copy")
    again = len(begun) - first
    assert again == 3 * 2  # manifest and table, whenever they are read
    assert first >= again + len(NAMES)


@pytest.mark.parametrize("found_by", ["reading", "reading alone", "--verify"])
def test_bits_that_rot_change_no_time_and_are_found_all_the_same(
    pictures: Path, tmp_path: Path, decoded: list[str], found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a store leaves a sign for who writes it, or, where that cannot be, says what to do."""
    store = tmp_path / "store"
    entry = prepare([str(pictures)], store).entries[1]
    status = (store / entry.file).stat()
    flip(store / entry.file, entry.offset)
    os.utime(store / entry.file, ns=(status.st_atime_ns, status.st_mtime_ns))
    decoded.clear()
    opened = prepare([str(pictures)], store)
    assert decoded == []
    if found_by == "reading alone":
        monkeypatch.setattr(os, "utime", refuse)
    for _ in range(0 if found_by == "--verify" else 2):
        with pytest.raises(
            ValueError, match=rf"{entry.file}: the stored set/b\.png is damaged; run the command"
        ) as said:
            opened.read(1)
        assert str(said.value).endswith("again" if found_by == "reading" else "again, with --verify")
    prepare([str(pictures)], store, verify=found_by != "reading")
    assert decoded == ["b.png"]
    check(store, pictures)


def refuse(path: Path) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def test_an_image_is_hashed_when_it_is_read_first(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = prepare([str(pictures)], tmp_path / "store").images
    begun = count_hashes(monkeypatch)
    for _ in range(3):
        assert images[2].shape[2] == 3
    assert len(begun) == 1


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    written = file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=(written, written + 10**9))  # a file system's clock may tick only every few milliseconds


DAMAGES: dict[str, Callable[[Path], None]] = {
    "shorter": lambda file: os.truncate(file, file.stat().st_size - 1),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 1),
    "empty": lambda file: os.truncate(file, 0),
    "missing": Path.unlink,
}
LOST = {"missing": "abcd", "empty": "abcd", "shorter": "d", "longer": ""}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_pack_that_is_not_whole_is_named_and_made_again(
    pictures: Path, tmp_path: Path, decoded: list[str], damage: str
) -> None:
    store = tmp_path / "store"
    pack = store / prepare([str(pictures)], store).entries[2].file
    DAMAGES[damage](pack)
    with pytest.raises(ValueError, match=rf"{pack}: a pack of the store (is missing|has \d+ bytes, expected \d+)"):
        Store(store)
    decoded.clear()
    prepare([str(pictures)], store)
    assert decoded == [f"{name}.png" for name in LOST[damage]]
    check(store, pictures)


def test_a_changed_pixel_is_found_when_it_is_read_and_repaired(
    pictures: Path, tmp_path: Path, decoded: list[str]
) -> None:
    store = tmp_path / "store"
    entry = prepare([str(pictures)], store).entries[2]
    flip(store / entry.file, entry.offset + entry.size - 1)
    opened = Store(store)
    assert np.array_equal(opened.images[1], read_image(tmp_path / NAMES[1]))
    with pytest.raises(ValueError, match=rf"{entry.file}: the stored set/c\.png is damaged"):
        opened.read(2)
    decoded.clear()
    prepare([str(pictures)], store)
    assert decoded == ["c.png"]
    check(store, pictures)


def test_a_folder_in_the_place_of_a_pack_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    pack = tmp_path / "store" / prepare([str(pictures)], tmp_path / "store").entries[0].file
    pack.unlink()
    pack.mkdir()
    with pytest.raises(ValueError, match=rf"{pack}: a pack of the store"):
        Store(tmp_path / "store")
    check(prepare([str(pictures)], tmp_path / "store").folder, pictures)
    assert pack.is_dir()


def test_an_image_that_left_the_sources_is_refused(pictures: Path, tmp_path: Path) -> None:
    prepare([str(pictures)], tmp_path / "store")
    before = contents(tmp_path / "store")
    (pictures / "b.png").unlink()
    with pytest.raises(ValueError, match=r"already holds set/b\.png, which is not among the sources \(1 such images"):
        prepare([str(pictures)], tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_a_second_writer_is_turned_away(pictures: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with locked(store), pytest.raises(ValueError, match="store: in use by process"):
        prepare([str(pictures)], store)
    assert not list(store.rglob("*.pack"))
    prepare([str(pictures)], store)
    check(store, pictures)


def test_the_size_is_announced_and_too_small_a_disk_is_refused_before_the_first_image(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    bytes_needed = sum(3 * height * width for height, width in SIZES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=bytes_needed - 1))
    with pytest.raises(
        ValueError, match=f"{bytes_needed} bytes, but only {bytes_needed - 1} bytes are free; make room"
    ):
        prepare([str(pictures)], store)
    assert not list(store.rglob("*.pack"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=bytes_needed))
    prepare([str(pictures)], store)
    assert f"decoded images: {bytes_needed} bytes needed, {bytes_needed} bytes free in {store}" in (
        capsys.readouterr().out
    )
    check(store, pictures)


def test_a_store_of_another_format_is_refused(pictures: Path, tmp_path: Path) -> None:
    prepare([str(pictures)], tmp_path / "store")
    manifest = tmp_path / "store" / MANIFEST
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"format": 2', '"format": 1'), encoding="utf-8")
    for use in (Store, lambda folder: prepare([str(pictures)], folder)):
        with pytest.raises(
            ValueError,
            match=r"manifest\.json: store format 1, this version reads 2; prepare the images again into another",
        ):
            use(tmp_path / "store")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format"', b"\xff"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json: not the manifest of a store"):
        Store(tmp_path)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match=f"{folder.name}: not a store"):
            Store(folder)
