"""The order of the packages, by reading every import: `python tests/test_import_graph.py` prints the graph.

Functions' own imports count too. Each rule returns what breaks it, one line each.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"cli", "eco_fast"},
    {"interop"},
    {"study"},
    {"training"},
    {"evaluation"},
    {"inference"},
    {"data"},
    {"models"},
    {"config", "utils"},
    {"kernels"},
)
"""From the top down: a package imports from lower floors alone. "eco_fast" is its __init__.py, the interface."""
MOST_NAMES, MOST_LINES, MOST_LINES_OF_FUNCTION = 10, 300, 60
ONE_THING = {
    "REGISTERS": "each module of fused kernels has its own",
    "WARPS": "each module of fused kernels has its own",
    "TILE": "each module of fused kernels has its own",
    "launch": "each module of fused kernels has one",
    "launch_gradient": "each module of fused kernels with a gradient has one",
    "checks": "each group of checks has its own",
    "cut_crops": "the op and its reference",
    "downsample": "the op, the formula it stands for, and its command",
    "downsample_blend": "the op and its reference",
    "blended_loss": "the op and its reference",
    "imresize": "the op and the formula it stands for",
    "add_norm": "the op and the formula it stands for",
    "bias_gelu": "the op and the formula it stands for",
    "decide_step": "the op and its reference",
    "bias_relu": "the op and its reference",
    "add_residual": "the op and its reference",
    "relu_gradient": "the op and its reference",
    "merge_gradients": "the op and its reference",
    "channel_sums": "the op and its reference",
    "attend_channels": "the op and its reference",
    "attention_sums": "the op and its reference",
    "attention_gradient": "the op and its reference",
    "window_attention": "the op and its reference",
    "add_parts": "the op, its formula, and the launch of its kernel",
    "main": "each program has one",
    "EDSR": "ours, and the one for spandrel, which stands alone",
}
"""Public names that two modules define for one thing, and why."""


class Tree:
    """The Python modules of eco_fast/ and kernels/ below a root, with the imports among them."""

    def __init__(self, root: Path) -> None:
        sources = [root / "eco_fast", root / "kernels" / "eco_fast_kernels"]
        self.paths = {name_of(path, top.parent): path for top in sources for path in sorted(top.rglob("*.py"))}
        self.native = [path for top in sources for path in sorted(top.rglob("*.cpp"))]
        self.parsed = {name: ast.parse(path.read_bytes()) for name, path in self.paths.items()}
        self.imports = {name: set(self._imports_of(name)) - {name} for name in self.paths}

    def _imports_of(self, name: str) -> Iterator[str]:
        for node in ast.walk(self.parsed[name]):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.paths)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{self._origin(name, node)}.{alias.name}"
                    found = inner if inner in self.paths else inner.rpartition(".")[0]
                    if found in self.paths:
                        yield found

    def _origin(self, name: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        package = name.split(".") if self.paths[name].name == "__init__.py" else name.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])

    def packages(self) -> dict[str, dict[str, str]]:
        """For each package those it imports, each with one of the imports."""
        graph: dict[str, dict[str, str]] = defaultdict(dict)
        for name, others in self.imports.items():
            for other in sorted(others):
                if package_of(name) != package_of(other):
                    graph[package_of(name)].setdefault(package_of(other), f"{name} imports {other}")
        return graph


def name_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def package_of(name: str) -> str:
    """The package or module right below eco_fast; __main__ belongs to the command line."""
    if name.startswith("eco_fast_kernels"):
        return "kernels"
    return "cli" if name == "eco_fast.__main__" else [*name.split("."), name][1]


def modules_in_circles(tree: Tree) -> Iterator[str]:
    yield from circle_of(tree.imports)


def packages_in_circles(tree: Tree) -> Iterator[str]:
    yield from circle_of({name: set(others) for name, others in tree.packages().items()})


def circle_of(graph: dict[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield " < ".join(error.args[1])


def arrows_upwards(tree: Tree) -> Iterator[str]:
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    for name, others in tree.packages().items():
        if name not in floor_of:
            yield f"{name} has no floor"
        for other, example in others.items():
            if floor_of.get(name, -1) >= floor_of.get(other, len(FLOORS)):
                yield f"{name} -> {other}: {example}"


def crowded_packages(tree: Tree) -> Iterator[str]:
    names = {name.split(".")[1] for name in tree.paths if name.startswith("eco_fast.")} - {"__main__"}
    if len(names) > MOST_NAMES:
        yield f"eco_fast has {len(names)} names at its top: {', '.join(sorted(names))}"


def long_files(tree: Tree) -> Iterator[str]:
    for path in [*tree.paths.values(), *tree.native]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield f"{path}: {lines} lines"


def long_functions(tree: Tree) -> Iterator[str]:
    for name, module in tree.parsed.items():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if is_kernel(node) else node  # a kernel's arguments stand one a line
                lines = (node.end_lineno or node.lineno) - first.lineno + 1
                if lines > MOST_LINES_OF_FUNCTION:
                    yield f"{name}.{node.name}: {lines} lines"


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles a function."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def names_of_the_standard_library(tree: Tree) -> Iterator[str]:
    for name in tree.paths:
        last = name.rpartition(".")[2]
        if last in sys.stdlib_module_names and last != "__main__":
            yield name


def names_for_two_things(tree: Tree) -> Iterator[str]:
    """Functions, classes and constants that two modules define; constants that no other module reads do not count."""
    places: dict[str, list[str]] = defaultdict(list)
    nodes = [node for module in tree.parsed.values() for node in ast.walk(module)]
    read = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for name, module in tree.parsed.items():
        for defined in public_names(module):
            places[defined].append(name)
    for defined, modules in sorted(places.items()):
        shared = defined in read or not defined.isupper()
        if len(modules) > 1 and shared and defined not in ONE_THING:
            yield f"{defined}: {', '.join(modules)}"


def public_names(module: ast.Module) -> set[str]:
    names = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in names if len(name) > 1 and not name.startswith("_")}  # single letters are type variables


RULES: tuple[Callable[[Tree], Iterator[str]], ...] = (
    modules_in_circles,
    packages_in_circles,
    arrows_upwards,
    crowded_packages,
    long_files,
    long_functions,
    names_of_the_standard_library,
    names_for_two_things,
)


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT)


@pytest.mark.parametrize("rule", RULES)
def test_the_tree_keeps_the_rule(rule: Callable[[Tree], Iterator[str]], tree: Tree) -> None:
    assert list(rule(tree)) == []


def test_the_tree_is_read(tree: Tree) -> None:
    assert {package for floor in FLOORS for package in floor} == {package_of(name) for name in tree.paths}
    assert "eco_fast_kernels.reference" in tree.imports["eco_fast_kernels.ops"]
    assert "eco_fast.training.pipeline" in tree.imports["eco_fast.cli.main"]  # a function's own import


@pytest.mark.parametrize(
    ("rule", "files", "complaint"),
    [
        (
            modules_in_circles,
            {"data/a.py": "from eco_fast.data import b", "data/b.py": "def f():\n    from .a import f"},
            "eco_fast.data.",
        ),
        (
            packages_in_circles,
            {"data/a.py": "import eco_fast.models.b", "data/c.py": "", "models/b.py": "from eco_fast.data.c import d"},
            " < ",
        ),
        (
            arrows_upwards,
            {"training/a.py": "def f():\n    from eco_fast.study import b", "study/b.py": ""},
            "training -> study: eco_fast.training.a imports eco_fast.study.b",
        ),
        (arrows_upwards, {"data/a.py": "", "new.py": "import eco_fast.data.a"}, "new has no floor"),
        (crowded_packages, {f"a{index}.py": "" for index in range(11)}, "eco_fast has 11 names"),
        (long_files, {"data/a.py": "\n" * 301}, "301 lines"),
        (long_files, {"models/cpu/a.cpp": "\n" * 301}, "301 lines"),
        (long_functions, {"a.py": "class A:\n  def f():" + "\n    1" * 60}, "eco_fast.a.f: 61 lines"),
        (names_of_the_standard_library, {"data/statistics.py": ""}, "eco_fast.data.statistics"),
        (
            names_for_two_things,
            {"a.py": "FAR: int = 1", "data/b.py": "FAR = 2; import eco_fast.a; eco_fast.a.FAR"},
            "FAR: eco_fast.a, eco_fast.data.b",
        ),
        (names_for_two_things, {"a.py": "class Run: 1", "b.py": "def Run(): 1"}, "Run: eco_fast.a, eco_fast.b"),
    ],
)
def test_what_breaks_a_rule_is_named(
    rule: Callable[[Tree], Iterator[str]], files: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    for name, source in files.items():
        path = tmp_path / "eco_fast" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    (said,) = rule(Tree(tmp_path))
    assert complaint in said


def show() -> bool:
    """Print the packages with what they import, and what breaks the rules; returns whether anything does."""
    tree = Tree(ROOT)
    for name, others in sorted(tree.packages().items()):
        print(f"{name} -> {', '.join(sorted(others))}")
    broken = [f"{rule.__name__}: {one}" for rule in RULES for one in rule(tree)]
    print("\n".join(broken) or "all rules are kept")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(show())
