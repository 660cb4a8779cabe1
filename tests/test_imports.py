"""House rules, read from the source: imports run downward, private names stay private, calls and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.helpers.verbs import ROOT

# Lowest first. A module may import from earlier lines and, without a cycle, from its own line. A module belongs to the
# longest name here that its dotted name begins with; a room's name alone includes its face, `__init__`.
ORDER = """
utils
config
command_line intervals pretrained_models
dataset.readers dataset.sampling
dataset.boxes dataset.transforms
dataset.layouts
dataset.cache
dataset.masks dataset.split dataset.phantom
dataset.image_set
dataset.loading
dataset.external dataset.contact_sheet
dataset.phantom.__main__
dataset
evaluation.predictions evaluation.provenance
evaluation.phrases
evaluation.metrics
evaluation.cautions evaluation.comparison evaluation.leaderboard
evaluation.figures
evaluation
experiment
inference
localization.methods.layers
localization.methods.cut
localization.methods.explanation localization.methods.attention
localization.methods.gradients localization.methods.perturbation localization.methods.pixels
localization.methods
localization.explainer
localization.states localization.scoring localization.sanity localization.request localization.drawing
localization
classifier report
training.optimisation training.precision
training.distributed
training.loop
training.compilation training.record
training.trackers
training
search
train test draw_cam compare tune
"""
RANKS = {name: rank for rank, line in enumerate(ORDER.strip().splitlines()) for name in line.split()}
NOT_ROOMS = {"tests", "benchmarks", "docs", "tools"}
MOST_PARAMETERS = 7  # self and cls apart
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_MODULE = 60, 350
FIELDS_BY_POSITION = 4  # a dataclass with more fields is kw_only



@cache
def modules() -> dict[str, Path]:
    """Return the file of every module at the root and in the rooms, by dotted name."""
    rooms = [f.parent for f in ROOT.glob("*/*.py") if f.parent.name not in NOT_ROOMS and f.parent.name[0] != "."]
    files = [*ROOT.glob("*.py"), *(file for room in set(rooms) for file in room.rglob("*.py"))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in sorted(files)}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def place(module: str, node: ast.AST) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{node.lineno}"


def rank(module: str) -> int | None:
    """Return the rank of the longest name in `ORDER` that `module` begins with; None if there is none."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((RANKS[name] for name in names if name in RANKS), None)


def imports(module: str) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield the statement, the project's module and the name in it (or "") of every import, function-level ones too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, "") for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(module, node)}: a relative import"
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules():
                    yield node, f"{node.module}.{alias.name}", ""
                elif node.module in modules():
                    yield node, node.module, alias.name


def functions(module: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield every function and whether its first parameter is `self` or `cls`."""
    for owner in ast.walk(tree(module)):
        for node in ast.iter_child_nodes(owner):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                yield node, isinstance(owner, ast.ClassDef) and not static


def report(offences: list[str]) -> None:
    assert not offences, "\n" + "\n".join(sorted(set(offences)))


def test_every_module_has_a_rank() -> None:
    report([f"{file.relative_to(ROOT)}: add it to ORDER" for name, file in modules().items() if rank(name) is None])


def test_imports_run_downward() -> None:
    report(
        [
            f"{place(module, node)} imports {target}, which is above it"
            for module in modules()
            for node, target, _ in imports(module)
            if rank(target) > rank(module)
        ]
    )


def test_imports_form_no_cycle() -> None:
    graph = {module: {target for _, target, _ in imports(module)} for module in modules()}
    report([" imports ".join(cycle) for cycle in cycles(graph)])


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return a cycle for every edge back into the path of a depth-first walk: at least one if there are any."""
    rings, finished, path = [], set(), []

    def walk(node: str) -> None:
        path.append(node)
        for target in sorted(graph[node]):
            if target in path:
                rings.append([*path[path.index(target) :], target])
            elif target not in finished:
                walk(target)
        finished.add(path.pop())

    for node in sorted(graph):
        if node not in finished:
            walk(node)
    return rings


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c", "b"]]
    assert cycles({"a": {"a"}}) == [["a", "a"]]


def test_underscored_names_stay_in_their_module() -> None:
    offences = []
    for module in modules():
        aliases = set()  # of the project's modules, in this file
        for node, target, name in imports(module):
            if any(part.startswith("_") and not part.startswith("__") for part in [*target.split("."), name]):
                offences.append(f"{place(module, node)} imports {target}.{name}")
            aliases |= {alias.asname or alias.name for alias in node.names} if not name else set()
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and ast.unparse(node.value) in aliases:
                offences.append(f"{place(module, node)} uses {ast.unparse(node)}")
    report(offences)


def test_no_function_takes_more_than_seven_arguments() -> None:
    offences = []
    for module in modules():
        for node, bound in functions(module):
            a = node.args
            count = len([*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]) - bound
            if count > MOST_PARAMETERS:
                offences.append(f"{place(module, node)} {node.name} takes {count}")
    report(offences)


def test_dataclasses_of_five_fields_are_keyword_only() -> None:
    offences = []
    for module in modules():
        for node in ast.walk(tree(module)):
            for decorator in getattr(node, "decorator_list", []) if isinstance(node, ast.ClassDef) else []:
                fields = [s for s in node.body if isinstance(s, ast.AnnAssign) and "ClassVar" not in ast.dump(s)]
                text = ast.unparse(decorator)
                dataclass = text.startswith(("dataclass", "dataclasses.dataclass"))
                if dataclass and len(fields) > FIELDS_BY_POSITION and "kw_only=True" not in text:
                    offences.append(f"{place(module, node)} {node.name} has {len(fields)} fields")
    report(offences)


def test_functions_and_modules_are_short() -> None:
    offences = []
    for module, file in modules().items():
        count = len(file.read_text(encoding="utf-8").splitlines())
        if count > MOST_LINES_OF_A_MODULE:
            offences.append(f"{file.relative_to(ROOT)} has {count} lines")
        for node, _ in functions(module):
            length = node.end_lineno - node.lineno + 1
            if length > MOST_LINES_OF_A_FUNCTION:
                offences.append(f"{place(module, node)} {node.name} has {length} lines")
    report(offences)


def test_docstrings_state_what_a_thing_does() -> None:
    """A docstring that begins with a question word describes a question, not the thing."""
    offences = []
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = (ast.get_docstring(node) or "").split(" ")[0]
                if first in ("What", "Whether", "Who", "Whose", "How", "Where", "Which", "Why"):
                    offences.append(f"{modules()[module].relative_to(ROOT)}: '{ast.get_docstring(node)[:60]}'")
    report(offences)
