"""Compile every kernel variant ahead of time for each GPU generation, and print what the machine code looks like.

    python -m eco_fast_kernels.machine_code > machine_code.md     Markdown tables of all generations
    python -m eco_fast_kernels.machine_code --sm 75               one generation

At the shapes of the recipes (LR patch 48). The tables change with every release of Triton, so they are made on demand.

Needs no GPU: Triton's own ptxas makes the machine code, its cuobjdump and nvdisasm read it. Columns:

    registers     per thread            spills     bytes of stack plus accesses to local memory; must be 0
    shared        bytes per program     loads, stores    widths of the global accesses in bits, most used first
    instructions  in the machine code, per value that a thread makes in one pass over it (loops counted once)

128-bit accesses are the pixels and weights; 32-bit and 64-bit ones are scalars, table entries, and the masked tail of
a last block; 8-bit ones are flags, and the pixels of images and rows that begin at any byte ("any rows").
"""

import argparse
import collections
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eco_fast_kernels.attention_variants import attention_variants
from eco_fast_kernels.crop_variants import KernelVariant, crop_variants
from eco_fast_kernels.decision import StepState
from eco_fast_kernels.epilogue_variants import epilogue_variants
from eco_fast_kernels.fused import decide_step as decide
from eco_fast_kernels.fused import lamb_step as lamb
from eco_fast_kernels.fused import muon_step as muon
from eco_fast_kernels.fused import newton_schulz
from eco_fast_kernels.muon import MOMENTUM
from eco_fast_kernels.norm_variants import norm_variants

# TITAN RTX and T4; A100; A6000 and RTX 30; L40S and RTX 40; H100 and H200; B200; RTX 50 and RTX PRO Blackwell
TARGETS = (75, 80, 86, 89, 90, 100, 120)
STATE_TYPES = ("fp32", "i64", "i64", "fp32", "i64", "fp64", "i64", "i64", "fp32", "i1")  # of `StepState`'s fields


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the machine code of a variant looks like."""

    variant: KernelVariant
    target: int
    registers: int
    spills: int
    shared: int
    loads: dict[int, int] = field(default_factory=dict)
    """Number of global loads by width in bits."""
    stores: dict[int, int] = field(default_factory=dict)
    instructions: float = 0.0


def variants() -> Iterator[KernelVariant]:
    """All kernels."""
    yield from crop_variants()
    yield from norm_variants()
    yield from _decide_step()
    yield from _lamb()
    yield from epilogue_variants()
    yield from attention_variants()
    yield from _muon()


def compile_variant(variant: KernelVariant, target: int) -> Compiled:
    """Compile for sm_`target` and read the machine code."""
    names: list[str] = list(variant.kernel.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    signature = {name: variant.types.get(name, "constexpr") for name in names}
    source = ASTSource(variant.kernel, signature=signature, constexprs=variant.constants, attrs=attributes)
    options = {"num_warps": variant.warps, "maxnreg": variant.registers, "num_stages": variant.stages}
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    local = sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes)
    return Compiled(
        variant=variant,
        target=target,
        registers=_number(usage, "REG"),
        spills=_number(usage, "STACK") + _number(usage, "LOCAL") + local,
        shared=binary.metadata.shared,
        loads=_widths(opcodes, "LDG"),
        stores=_widths(opcodes, "STG"),
        instructions=len(opcodes) * 32 * variant.warps / variant.values,
    )


def table(target: int) -> str:
    """The Markdown table of one GPU generation."""
    lines = [
        f"### sm_{target}",
        "",
        "| kernel | registers | spills | shared | loads | stores | instructions |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in (variant for variant in variants() if variant.lowest <= target):
        one = compile_variant(variant, target)
        loads, stores = (
            " ".join(f"{count}x{bits}" for bits, count in widths.items()) for widths in (one.loads, one.stores)
        )
        lines.append(
            f"| {variant.name} | {one.registers} | {one.spills} | {one.shared} | {loads} | {stores} | "
            f"{one.instructions:.1f} |"
        )
    return "\n".join(lines)


def _decide_step() -> Iterator[KernelVariant]:
    yield KernelVariant(
        name="decide_step, find nonfinite",
        kernel=decide.find_nonfinite_kernel,
        types={"gradients": "*fp32", "found": "*i32", "numel": "i32"},
        constants={"BLOCK": decide.SEARCHED},
        divisible=frozenset(("gradients", "found")),
        warps=decide.SEARCH_WARPS,
        values=decide.SEARCHED,
    )
    state = {name: f"*{kind}" for name, kind in zip(StepState._fields, STATE_TYPES, strict=True)}
    pointers = {"found": "*i32", "loss": "*fp32", **state, "skip": "*i1", "inverse_scale": "*fp32"}
    for scales in (False, True):
        yield KernelVariant(
            name="decide_step, decide" + (" and scale" if scales else ""),
            kernel=decide.decide_kernel,
            types=pointers | dict.fromkeys(("blocks", "places", "growth_interval"), "i32") | {"spike_factor": "fp32"},
            constants={"SPIKES": True, "SCALES": scales, "GATHERED": decide.GATHERED},
            divisible=frozenset(pointers),
            warps=4,
            values=decide.GATHERED,
        )


def _lamb() -> Iterator[KernelVariant]:
    pointers = {"table": "*i64", "chunks": "*i32", "sums": "*fp32", "skip": "*i1"}
    common = {"ALIGNED": True, "CHUNK": lamb.CHUNK, "BLOCK": lamb.BLOCK}
    rest: dict[str, Any] = {"warps": 4, "values": lamb.BLOCK}
    numbers = ("beta1", "beta2", "one_minus_beta1", "one_minus_beta2", "epsilon", "weight_decay", "clip_value")
    yield KernelVariant(
        name="lamb_step, moments",
        kernel=lamb.moments_kernel,
        types=pointers | {"inverse_scale": "*fp32"} | dict.fromkeys(numbers, "fp32"),
        constants={"CLIP": True, **common},
        divisible=frozenset((*pointers, "inverse_scale")),
        **rest,
    )
    scalars = ("epsilon", "weight_decay", "norm_clamp", "one_minus_decay")
    for average in (False, True):
        yield KernelVariant(
            name="lamb_step, update" + (" with average" if average else ""),
            kernel=lamb.update_kernel,
            types=pointers | {"learning_rate": "*fp32"} | dict.fromkeys(scalars, "fp32"),
            constants={"AVERAGE": average, **common},
            divisible=frozenset((*pointers, "learning_rate")),
            **rest,
        )


def _muon() -> Iterator[KernelVariant]:
    for kernel, name in (
        (muon.momentum_kernel, "muon_step, momentum"),
        (muon.normalise_kernel, "muon_step, normalise"),
        (muon.adam_kernel, "muon_step, adam with average"),
        (muon.move_kernel, "muon_step, move with average"),
    ):
        tile = newton_schulz.BY_TENSOR_CORES.side
        constants = {"MOMENTUM": MOMENTUM, "CLIP": True, "AVERAGE": True, "VALUES": muon.VALUES, "TILE": tile}
        yield _of_muon(kernel, name, constants, warps=muon.WARPS, values=muon.VALUES)
    for tiling, when in ((newton_schulz.BY_TENSOR_CORES, ""), (newton_schulz.BY_REGISTERS, ", before sm_80")):
        for kernel, name in (
            (newton_schulz.gram_kernel, "gram"),
            (newton_schulz.polynomial_kernel, "polynomial"),
            (newton_schulz.apply_kernel, "apply"),
        ):
            shape: dict[str, Any] = {"warps": tiling.warps, "values": tiling.side**2}
            yield _of_muon(kernel, f"newton_schulz, {name}{when}", {"TILE": tiling.side}, **shape)


def _of_muon(kernel: Any, name: str, constants: dict[str, Any], **shape: Any) -> KernelVariant:
    pointers = {"table": "*i64", "blocks": "*i32", "tiles": "*i32", "skip": "*i1"}
    pointers |= dict.fromkeys(("x", "result", "grams", "polynomials", "orthogonal"), "*fp16")
    numbers = ["clip_value", "smallest_norm", "adam_factor", "beta1", "beta2", "one_minus_beta1", "one_minus_beta2"]
    numbers += ["epsilon", "weight_decay", "one_minus_decay", "linear", "cubic", "quintic"]
    kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(numbers, "fp32") | {"numel": "i32"} | pointers
    types = {one: kinds[one] for one in kernel.arg_names if one not in constants}
    return KernelVariant(
        name=name,
        kernel=kernel,
        types=types,
        constants={one: value for one, value in constants.items() if one in kernel.arg_names},
        divisible=frozenset(one for one, kind in types.items() if kind.startswith("*")),
        **shape,
    )


def _tool(name: str, *arguments: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=True).stdout


def _number(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    return int(found.group(1)) if found else 0


def _widths(opcodes: list[str], kind: str) -> dict[int, int]:
    """Number of accesses by width in bits: LDG.E.128 is 128, LDG.E.U8 is 8, a plain LDG.E is 32."""
    counts: collections.Counter[int] = collections.Counter()
    for opcode in opcodes:
        if opcode.startswith(kind):
            width = re.search(r"\.[US]?(8|16|64|128)\b", opcode)
            counts[int(width.group(1)) if width else 32] += 1
    return dict(counts.most_common())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, choices=TARGETS, help="one GPU generation instead of all")
    wanted = parser.parse_args().sm
    print("\n\n".join(table(target) for target in ((wanted,) if wanted else TARGETS)))


if __name__ == "__main__":
    main()
