"""The kernels around linear layers compiled ahead of time: what their machine code promises."""

import pytest
from eco_fast_kernels import machine_code
from eco_fast_kernels.fused import add_norm, bias_gelu, column_sums

from tests.kernels.test_machine_code import WHOLE, Made, compile_variants

pytestmark = pytest.mark.slow

# The oldest generation compiles every kernel; the later ones that with the most in registers.
OLDEST = r"add_norm( gradient)? (60 bf16, factors|180 bf16 throughout)|bias_gelu( gradient)? 120 bf16|column_sums 60"
LATER = "add_norm gradient 60 bf16, factors"
PROCESSES = (((75, OLDEST),), tuple((target, LATER) for target in WHOLE))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    return compile_variants(PROCESSES, tmp_path_factory.mktemp("triton"))


def test_every_generation_and_kernel_is_there(made: list[Made]) -> None:
    for target in (75, *WHOLE):
        assert sum(variant.target == target for variant in made) == (7 if target == 75 else 1)


def test_nothing_spills(made: list[Made]) -> None:
    assert {(variant.name, variant.target): variant.spills for variant in made if variant.spills} == {}


def test_registers_leave_room_for_four_programs(made: list[Made]) -> None:
    of_program = {(variant.name, variant.target): variant.registers * 32 * variant.warps for variant in made}
    assert {name: count for name, count in of_program.items() if count > 65536 / 4} == {}
    assert all(of_program.values())


def test_rows_move_as_wide_as_they_begin(made: list[Made]) -> None:
    """Rows of 60 or 180 begin at multiples of 16 bytes in float32, and of 8 in 16 bits."""
    for variant in made:
        if variant.name.startswith("add_norm"):
            of_gradient = "gradient" in variant.name
            accesses = (add_norm.GRADIENT_TILE if of_gradient else add_norm.TILE) // (32 * variant.warps) // 4
            single = "throughout" not in variant.name  # the stream and its total are float32
            assert not {"8", "16"} & {*variant.loads, *variant.stores}, variant
            stored, loaded = single * accesses, single * (1 + of_gradient) * accesses
            assert stored <= variant.stores.get("128", 0) <= stored + 3, variant  # the parts of three sums
            assert loaded <= variant.loads.get("128", 0) <= loaded + 3, variant  # weight and biases


def test_hidden_values_move_16_bytes_a_thread(made: list[Made]) -> None:
    for variant in made:
        if variant.name.startswith("bias_gelu"):
            of_gradient = "gradient" in variant.name
            accesses = bias_gelu.TILE // (32 * variant.warps) // 8
            assert variant.loads == {"128": accesses * (1 + of_gradient), "32": 1}, variant  # the bias
            assert variant.stores == {"128": accesses} | ({"32": 1} if of_gradient else {}), variant  # a part


def test_parts_are_read_16_bytes_a_thread(made: list[Made]) -> None:
    (sums,) = (variant for variant in made if variant.name.startswith("column_sums"))
    values = column_sums.BLOCK_PARTS * column_sums.BLOCK_COLUMNS
    assert sums.loads == {"128": values // (32 * sums.warps) // 4}


def test_the_report_has_every_variant_once() -> None:
    names = [variant.name for variant in machine_code.variants()]
    assert len(set(names)) == len(names)
    for dtype in ("fp16", "bf16", "fp32"):
        for channels in (60, 180):
            for direction in ("", " gradient"):
                assert f"add_norm{direction} {channels} {dtype}, factors" in names
                assert f"bias_gelu{direction} {2 * channels} {dtype}" in names
