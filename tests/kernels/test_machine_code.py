"""The kernels compiled ahead of time for each GPU generation: what their machine code promises."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from eco_fast_kernels import PlanColumn, machine_code
from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS
from eco_fast_kernels.fused import cut_crops, decide_step
from eco_fast_kernels.reference import LOSS_KINDS

pytestmark = pytest.mark.slow

KERNELS = Path(__file__).parents[2] / "kernels"
# One process compiles every kind of kernel and the largest variants for the oldest generation; the other what steps are
# made of for some of the later ones, and for those between them what is most likely to spill.
# `python -m eco_fast_kernels.machine_code` compiles all for all.
LARGE = r"downsample_blend (x\d uint8 bf16|x2 im2double bf16|x2 uint8 \w+), hr and sr|downsample x8 uint8 u8, any rows"
SMALL = r"downsample x2 uint8 u8|cut_crops x2|blended_loss( (l1 \w+|l2 bf16|charbonnier fp32) x2, hr and sr|, sum)"
ATTENTION = r"window_attention 8 10 fp16 exact.*|window_attention 8, sums"
OLDEST = f"{LARGE}|{SMALL}|(decide|lamb|muon)_step, .*|newton_schulz, .*, before sm_80|{ATTENTION}"
LATER = r"cut_crops x2|downsample_blend x2 uint8 bf16, hr and sr|blended_loss l1 fp32 x2, hr and sr|lamb_step, moments"
LATER += r"|newton_schulz, \w+|window_attention 8 16 bf16, gradients"
MOST_REGISTERS = r"window_attention 8 16 bf16, gradients|downsample_blend x2 uint8 bf16, hr and sr"
WHOLE, BETWEEN = (89, 90, 120), (80, 86, 100)
PROCESSES = (((75, OLDEST),), (*((one, LATER) for one in WHOLE), *((one, MOST_REGISTERS) for one in BETWEEN)))
SCRIPT = """
import json, re, sys
from eco_fast_kernels import PlanColumn, machine_code
for target, wanted in json.loads(sys.argv[1]):
    for variant in machine_code.variants():
        if re.fullmatch(wanted, variant.name) and variant.lowest <= target:
            made = machine_code.compile_variant(variant, target)
            print(json.dumps({
                "name": variant.name, "target": target, "warps": variant.warps, "registers": made.registers,
                "spills": made.spills, "loads": made.loads, "stores": made.stores,
            }))
"""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A variant's machine code, as the report reads it."""

    name: str
    target: int
    warps: int
    registers: int
    spills: int
    loads: dict[str, int]
    stores: dict[str, int]

    @property
    def is_cut(self) -> bool:
        return self.name.startswith("cut_crops")

    @property
    def is_blend(self) -> bool:
        return self.name.startswith("downsample") and not self.name.endswith("any rows")

    @property
    def is_loss(self) -> bool:
        return self.name.startswith("blended_loss ")

    @property
    def is_attention(self) -> bool:
        return self.name.startswith("window_attention")

    @property
    def is_lamb(self) -> bool:
        return self.name.startswith("lamb_step")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    return compile_variants(PROCESSES, tmp_path_factory.mktemp("triton"))


def compile_variants(processes: Sequence[Sequence[tuple[int, str]]], folder: Path) -> list[Made]:
    """Of each process the targets and the names; compiled without the interpreter, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(KERNELS)}
    running = []
    for work in processes:
        command = [sys.executable, "-c", SCRIPT, json.dumps(work)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        )
    variants = []
    for process in running:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        variants += [Made(**json.loads(line)) for line in out.splitlines()]
    return variants


def test_every_generation_and_kernel_is_there(made: list[Made]) -> None:
    assert {variant.target for variant in made} == set(machine_code.TARGETS) == {75, 80, 86, 89, 90, 100, 120}
    assert all(sum(variant.target == target for variant in made) == 2 for target in BETWEEN)
    for target in (75, *WHOLE):
        of_target = [variant for variant in made if variant.target == target]
        assert len(of_target) == (33 if target == 75 else 8)
        assert any(variant.is_cut for variant in of_target)
        assert any(variant.is_blend for variant in of_target)
        assert any(variant.is_loss for variant in of_target)
        assert any(variant.is_lamb for variant in of_target)
        assert sum(variant.name.startswith("newton_schulz") for variant in of_target) == 3
        assert any(variant.is_attention for variant in of_target)


def test_nothing_spills(made: list[Made]) -> None:
    assert {(variant.name, variant.target): variant.spills for variant in made if variant.spills} == {}


def test_registers_leave_room_for_several_programs(made: list[Made]) -> None:
    """Eight warps of attention, whose sums stay in registers and whose products keep a processor busy."""
    for variant in made:
        programs = 8 // variant.warps if variant.is_attention else 3
        assert 0 < variant.registers * 32 * variant.warps <= 65536 / programs, variant


def test_pixels_and_weights_move_16_bytes_a_thread(made: list[Made]) -> None:
    for variant in made:
        if variant.is_blend or variant.is_loss or variant.is_lamb:
            assert max(map(int, variant.loads)) == 128, variant
            alone = variant.name.endswith(" u8")  # a thread has eight values of one byte
            assert max(map(int, variant.stores)) == (64 if alone else 128), variant


def test_muon_moves_16_bytes_a_thread(made: list[Made]) -> None:
    """But for 16-bit values that lie in tiles, and come from whole rows or go there."""
    for variant in made:
        if variant.name.startswith(("muon_step", "newton_schulz")):
            assert max(map(int, variant.loads)) == 128, variant
            assert max(map(int, variant.stores)) == (16 if "normalise" in variant.name else 128), variant


def test_attention_moves_16_bytes_a_thread(made: list[Made]) -> None:
    """Of heads whose rows begin at multiples of 16 bytes: q, k, v and a gradient in, three gradients out."""
    attention = [variant for variant in made if variant.name == "window_attention 8 16 bf16, gradients"]
    assert len(attention) == len(machine_code.TARGETS) - 1
    for variant in attention:
        assert variant.loads["128"] >= 4, variant
        assert variant.stores["128"] == 3, variant
        assert not {"8", "16"} & {*variant.loads, *variant.stores}, variant


def test_gradients_are_searched_16_bytes_a_thread(made: list[Made]) -> None:
    (search,) = (variant for variant in made if variant.name == "decide_step, find nonfinite")
    threads, per_load = 32 * decide_step.SEARCH_WARPS, 4
    whole, tail = decide_step.SEARCHED // threads // per_load, decide_step.SEARCHED // threads
    assert search.loads == {"128": whole, "32": tail}
    assert search.stores == {"32": 1}


def test_cut_crops_are_written_16_bytes_a_thread(made: list[Made]) -> None:
    threads = 32 * cut_crops.WARPS
    bytes_of_a_thread = cut_crops.BLOCK_ROWS * cut_crops.BLOCK_BYTES // threads
    for variant in made:
        if variant.is_cut:
            assert variant.stores == {"128": bytes_of_a_thread // 16}, variant
            assert variant.loads["8"] == bytes_of_a_thread, variant
            assert sum(count for bits, count in variant.loads.items() if bits != "8") == len(PlanColumn), variant


def test_no_pixel_is_read_alone(made: list[Made]) -> None:
    for variant in made:
        if variant.is_blend or variant.is_loss:
            flags = 1 if variant.is_blend and " uint8 " in variant.name else 0  # is the sample transposed
            assert variant.loads.get("8", 0) == flags, variant
            assert not {"8", "16"} & set(variant.stores), variant
            # Alpha, and the gradient's scale; no weights.
            scalars = 2 if variant.is_loss else 1 if variant.name.endswith("hr and sr") else 0
            assert variant.loads.get("32", 0) == scalars, variant
            assert not {"16", "64"} & set(variant.loads), variant


# --- the report itself ---


def test_the_report_has_every_variant_once() -> None:
    names = [variant.name for variant in machine_code.variants()]
    assert len(set(names)) == len(names)
    for scale in STENCILS:
        assert f"cut_crops x{scale}" in names
        for rounding in ROUNDINGS:
            for dtype in ("fp16", "bf16", "fp32"):
                assert f"downsample_blend x{scale} {rounding} {dtype}, hr and sr" in names
            assert f"downsample x{scale} {rounding} u8" in names
            assert f"downsample x{scale} {rounding} u8, any rows" in names
    for kind in LOSS_KINDS:
        for dtype in ("fp16", "bf16", "fp32"):
            assert f"blended_loss {kind} {dtype} x2, hr and sr" in names
    for size in (10, 30):
        assert {f"window_attention 8 {size} {dtype}" for dtype in ("fp16", "bf16", "fp32 exact")} <= set(names)


def test_widths_of_accesses() -> None:
    opcodes = ["LDG.E.128", "LDG.E.128.CONSTANT", "LDG.E.U8", "LDG.E.S8", "LDG.E.U16", "LDG.E", "LDG.E.64", "STG.E.128"]
    assert machine_code._widths(opcodes, "LDG") == {128: 2, 8: 2, 16: 1, 32: 1, 64: 1}
    assert machine_code._widths([*opcodes, "LDG.E.LTC128B.64"], "LDG")[64] == 2
    assert machine_code._widths(opcodes, "STG") == {128: 1}


def test_numbers_of_the_resource_usage() -> None:
    usage = " Function kernel:\n  REG:28 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:400 TEXTURE:0"
    assert [machine_code._number(usage, name) for name in ("REG", "STACK", "LOCAL", "ABSENT")] == [28, 16, 8, 0]
