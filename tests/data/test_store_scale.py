"""Stores of many images, of many processes, and with a wrong bit: counted, compared byte by byte, and refused."""

import errno
import hashlib
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.data import packs, prepare, store_table
from eco_fast.data.images import read_image
from eco_fast.data.sampler import Sampler
from eco_fast.data.sources import names_of, sizes_of, without_small
from eco_fast.data.store import JOURNAL, MANIFEST, Store
from eco_fast.data.store_writer import Wanted, Writer
from eco_fast.utils.workers import in_parallel
from tests.helpers import write_store

MANY = 70_000  # more than vm.max_map_count


def draw(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        size = (8 + index % 5, 9 + index % 3, 3)
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index:02}.png")


def files(store: Path) -> dict[str, bytes]:
    """Every file, without when the packs were written."""
    return {
        str(path.relative_to(store)): re.sub(rb'"written": ".*"', b"", path.read_bytes())
        for path in store.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 1000)


@pytest.fixture
def eager_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is worth a process."""
    monkeypatch.setattr(prepare, "WORKER_BYTES", 1)
    monkeypatch.setattr(prepare, "HEADERS_A_WORKER", 1)


# --- many images ---


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MANY images of 4x4 pixels, each filled with its number."""
    folder = tmp_path_factory.mktemp("many")
    with Writer(folder, {"kind": "hr"}) as writer:
        writer.plan([Wanted(name=f"set/{index}.png", size=48, origin="0" * 64) for index in range(MANY)])
        writer.rows["height"] = writer.rows["width"] = 4
        digests = b"".join(hashlib.sha256(bytes([value] * 48)).digest() for value in range(251))
        writer.rows["sha256"] = np.frombuffer(digests, np.uint8).reshape(251, 32)[np.arange(MANY) % 251]
        np.repeat(np.arange(MANY) % 251, 48).astype(np.uint8).tofile(folder / packs.pack_file(0))
        writer.finish()
    return folder


def test_many_images_take_no_object_and_no_map_each(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(store_table, "Entry", lambda **_: made.append(0))
    before = len(Path("/proc/self/maps").read_text(encoding="ascii").splitlines())
    store = without_small(Store(many), 2, 2, skip=False)
    sampler = Sampler(sizes_of(store), scale=2, patch=2, batch_size=8, seed=1)
    plans = [sampler.plan(step).image for step in range(5)]
    assert all(np.array_equal(store.read(image), np.full((4, 4, 3), image % 251)) for image in np.concatenate(plans))
    after = len(Path("/proc/self/maps").read_text(encoding="ascii").splitlines())
    assert made == []
    assert after - before < 20  # one for the pack; the rest is numpy's memory
    assert len(names_of(store)) == len(store) == MANY


def test_a_selection_opens_nothing_again(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(many)
    store.read(0)
    monkeypatch.setattr(torch, "from_file", None)
    chosen = store.select([f"set/{index}.png" for index in range(MANY - 1, 0, -7)])
    assert chosen.read(3)[0, 0, 0] == (MANY - 22) % 251
    assert chosen.entries[3].name == f"set/{MANY - 22}.png"
    again = chosen.select([f"set/{MANY - 22}.png"])
    assert (len(again), again.read(0)[0, 0, 0]) == (1, (MANY - 22) % 251)


def test_a_limit_of_the_system_is_no_damage(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: Any) -> None:
        raise RuntimeError(f"unable to mmap 5 bytes from file <{name}>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "from_file", refuse)
    with pytest.raises(ValueError, match=r"the pack is whole, but the system maps no more files: .*max_map_count"):
        Store(many).read(0)


@pytest.mark.usefixtures("small_packs")
def test_images_lie_in_packs_of_bounded_size(tmp_path: Path) -> None:
    images = {f"{side}.png": np.full((side, side, 3), side, dtype=np.uint8) for side in (5, 30, 9, 12, 3, 2)}
    store = write_store(tmp_path, images)
    places = [(0, 0), (1, 0), (2, 0), (2, 243), (2, 675), (2, 702)]
    assert [(entry.pack, entry.offset) for entry in store.entries] == places
    assert [int(pixels[0, 0, 0]) for pixels in store.images] == [int(Path(name).stem) for name in images]


# --- many processes ---


@pytest.mark.slow
@pytest.mark.usefixtures("small_packs", "eager_workers")
def test_any_number_of_processes_makes_the_same_store(tmp_path: Path) -> None:
    draw(tmp_path / "set", 12)
    stores = [tmp_path / f"store-{workers}" for workers in (1, 2, 3)]
    for workers, store in enumerate(stores, start=1):
        prepare.prepare([str(tmp_path / "set")], store, workers=workers)
    assert files(stores[0]) == files(stores[1]) == files(stores[2])
    assert len(list(stores[0].glob("packs/*"))) > 2
    for entry, pixels in zip(Store(stores[2]).entries, Store(stores[2]).images, strict=True):
        assert np.array_equal(pixels, read_image(tmp_path / entry.name))


@pytest.mark.slow
@pytest.mark.usefixtures("eager_workers")
def test_a_damaged_image_is_named_by_whichever_process_has_it(tmp_path: Path) -> None:
    draw(tmp_path / "set", 6)
    (tmp_path / "set/03.png").write_bytes((tmp_path / "set/03.png").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"set/03\.png: damaged"):
        prepare.prepare([str(tmp_path / "set")], tmp_path / "store", workers=2)
    draw(tmp_path / "set", 6)
    assert len(prepare.prepare([str(tmp_path / "set")], tmp_path / "store", workers=2)) == 6


def test_a_worker_that_dies_is_told_of() -> None:
    with pytest.raises(ValueError, match="a worker process has ended"):
        list(in_parallel(os._exit, [3, 3, 3], 2))


def test_results_of_workers_belong_to_their_items() -> None:
    assert sorted(in_parallel(abs, range(-20, 0), 2)) == [(index, 20 - index) for index in range(20)]


def killed(work: Callable[[], object], write: int, part: float) -> bool:
    """Do the work in a process that is killed in the middle of one of its writes to a pack; whether it came so far."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    real, left = os.pwrite, iter(range(write))

    def limited(file: int, pixels: memoryview, offset: int) -> int:
        if next(left, None) is None:
            real(file, pixels[: int(part * len(pixels))], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(file, pixels, offset)

    setattr(os, "pwrite", limited)  # noqa: B010 - its type says nothing of views
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.usefixtures("small_packs")
@pytest.mark.parametrize("seconds", [-1.0, 1e9])  # between writes of the journal: it has every image, or none
def test_a_store_that_was_killed_at_random_is_that_of_an_undisturbed_run(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eco_fast.data.store_writer.JOURNAL_SECONDS", seconds)
    draw(tmp_path / "set", 5 * 8 + 1)
    moments = np.random.default_rng(5)
    again = lambda: prepare.prepare([str(tmp_path / "set")], tmp_path / "killed")  # noqa: E731
    assert all(killed(again, int(moments.integers(8)), moments.random()) for _ in range(5))
    with pytest.raises(ValueError, match="store"):
        Store(tmp_path / "killed")
    again()
    prepare.prepare([str(tmp_path / "set")], tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def interrupted_after(monkeypatch: pytest.MonkeyPatch, images: int, source: Path, store: Path) -> list[str]:
    """Interrupt `prepare` when so many images are decoded; returns their names, to which later ones are added."""
    decoded: list[str] = []

    def read(path: Path, **options: Any) -> Any:
        if len(decoded) == images:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return read_image(path, **options)

    monkeypatch.setattr("eco_fast.data.decode.read_image", read)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare([str(source)], store)
    return decoded


@pytest.mark.usefixtures("small_packs")
def test_other_sources_after_an_interruption_keep_what_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "set", 8)
    decoded = interrupted_after(monkeypatch, 5, tmp_path / "set", tmp_path / "store")
    (tmp_path / "set/02.png").unlink()
    draw(tmp_path / "set/more", 2, seed=9)
    decoded.insert(0, "")
    store = prepare.prepare([str(tmp_path / "set")], tmp_path / "store")
    assert decoded[6:] == ["05.png", "06.png", "07.png", "00.png", "01.png"]
    for entry, pixels in zip(store.entries, store.images, strict=True):
        assert np.array_equal(pixels, read_image(tmp_path / entry.name))


# --- wrong bits ---


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("kind", [MANIFEST, "*.table", "packs/*"])
def test_a_wrong_bit_is_found_or_harmless(tmp_path: Path, kind: str) -> None:
    """What is read of a store with one wrong bit is what was written, or an error that names the file."""
    generator = np.random.default_rng(3)
    images = {f"set/{index}.png": generator.integers(0, 256, (4, 5, 3), dtype=np.uint8) for index in range(6)}
    written = list(write_store(tmp_path, images).entries)
    (path,) = tmp_path.glob(kind)
    whole, moments = path.read_bytes(), np.random.default_rng(len(kind))
    found: list[str] = []
    for _ in range(40):
        flip_bit(path, int(moments.integers(8 * len(whole))))
        try:
            store = Store(tmp_path)
            pixels = [np.array(one) for one in store.images]
        except ValueError as error:
            found.append(str(error))
        else:
            assert list(store.entries) == written
            assert store.attributes == {"kind": "hr"}
            assert all(map(np.array_equal, pixels, images.values()))
        path.write_bytes(whole)
    assert all(str(tmp_path) in said for said in found)
    assert len(found) > 30


def test_a_wrong_bit_in_a_journal_costs_its_image_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "set", 5)
    store, journal = tmp_path / "store", tmp_path / "store" / JOURNAL.format("")
    prepare.prepare([str(tmp_path / "set")], tmp_path / "whole")
    moments = np.random.default_rng(11)
    for _ in range(6):
        decoded = interrupted_after(monkeypatch, 4, tmp_path / "set", store)
        flip_bit(journal, int(moments.integers(8 * journal.stat().st_size)))
        decoded.clear()
        prepare.prepare([str(tmp_path / "set")], store)
        assert len(decoded) in (2, 3)  # the one that was missing, and one or, of a wrong end of line, two
        assert files(store) == files(tmp_path / "whole")
        for path in store.rglob("*"):
            if path.is_file():
                path.unlink()


# --- odd file systems ---


def test_a_name_that_is_not_utf_8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"set/caf\xe9.png")
    store = write_store(tmp_path, {name: np.zeros((4, 4, 3), dtype=np.uint8)})
    assert store.entries.names() == [store.entries[0].name] == [name]
    assert len(store.select([name])) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "a copy's times": lambda store: os.utime(store / packs.pack_file(0), ns=(5, 5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_store_need_not_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    draw(tmp_path / "set", 3)
    store = tmp_path / "store"
    prepare.prepare([str(tmp_path / "set")], store)
    CHANGES[change](store)
    before = files(store)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "store")

    for name in ("write_atomically", "write_json", "make_folder", "sync_folder"):
        monkeypatch.setattr(f"eco_fast.data.store_writer.{name}", refuse)
    made = prepare.prepare([str(tmp_path / "set")], store)
    assert np.array_equal(made.read(2), read_image(tmp_path / "set/02.png"))
    assert files(store) == before
    assert json.loads((store / MANIFEST).read_text(encoding="utf-8"))["images"] == 3
