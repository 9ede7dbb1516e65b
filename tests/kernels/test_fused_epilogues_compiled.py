"""The kernels behind convolutions compiled ahead of time: what their machine code promises."""

import pytest
from eco_fast_kernels import machine_code

from tests.kernels.test_machine_code import WHOLE, Made, compile_variants

pytestmark = pytest.mark.slow

OF_EPILOGUES = ("bias_relu", "add_residual", "relu_gradient", "merge_gradients")
OPS = (*OF_EPILOGUES, "channel_sums", "attend_channels", "attention_sums", "attention_gradient")
# The oldest generation compiles every kernel; the later ones those with the most registers.
OLDEST = rf"({'|'.join(OPS)})(, \w+ factors|, scaled)?, (64 channels, (bf16|fp32)|256 channels, bf16)|add_parts, .*"
LATER = r"(merge_gradients, scaled|attend_channels|attention_sums), 64 channels, bf16|add_residual, .*, 256 .*, fp16"
PROCESSES = (((75, OLDEST),), tuple((target, LATER) for target in WHOLE))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    return compile_variants(PROCESSES, tmp_path_factory.mktemp("triton"))


def test_every_generation_and_kernel_is_there(made: list[Made]) -> None:
    for target in (75, *WHOLE):
        names = [variant.name for variant in made if variant.target == target]
        assert len(names) == (32 if target == 75 else 4)
    assert {variant.name.partition(",")[0] for variant in made} == {*OPS, "add_parts"}


def test_nothing_spills(made: list[Made]) -> None:
    assert {(variant.name, variant.target): variant.spills for variant in made if variant.spills} == {}


def test_registers_leave_room_for_four_programs(made: list[Made]) -> None:
    of_program = {(variant.name, variant.target): variant.registers * 32 * variant.warps for variant in made}
    assert {name: count for name, count in of_program.items() if count > 65536 / 4} == {}
    assert all(of_program.values())


def test_images_move_16_bytes_a_thread(made: list[Made]) -> None:
    for variant in made:
        assert max(map(int, variant.loads)) == 128, variant
        only_sums = variant.name.startswith(("channel_sums", "add_parts"))
        assert ("128" in variant.stores) != only_sums, variant
        assert not {"8", "16"} & {*variant.loads, *variant.stores}, variant


def test_narrow_accesses_are_those_of_channels(made: list[Made]) -> None:
    """A bias, sums, the scalar factors; the weights of the small network where there is one."""
    for variant in made:
        small_network = variant.name.startswith(("attend_channels", "attention_gradient"))
        for widths, most in ((variant.loads, 6 if small_network else 2), (variant.stores, 3 if small_network else 2)):
            assert sum(count for bits, count in widths.items() if bits != "128") <= most, variant


def test_the_report_has_every_variant_once() -> None:
    names = [variant.name for variant in machine_code.variants()]
    assert len(set(names)) == len(names)
    for channels in (64, 256):
        for dtype in ("fp16", "bf16", "fp32"):
            for op in OPS:
                assert f"{op}, {channels} channels, {dtype}" in names
            assert f"merge_gradients, scaled, {channels} channels, {dtype}" in names
