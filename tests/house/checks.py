"""The house rules as functions from one source file to the violations in it.

The idea: a rule is code that can be shown to fail. `test_house.py` runs every rule over the whole tree, and over
short bad examples that each must be caught. Everything is read from the syntax tree; nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
FOLDERS = ("protocol", "dht", "peer", "cli", "configs")

PURE_FORBIDDEN = (
    *("asyncio", "trio", "anyio", "uvloop", "threading", "multiprocessing", "subprocess"),
    *("socket", "ssl", "select", "selectors", "hivemind", "libp2p"),
    *("time", "datetime", "random", "secrets", "uuid", "os", "tempfile"),
    *("torch", "numpy"),
)
COMPUTE_PROTOCOL = tuple(
    f"crowdsurf.protocol.{name}"
    for name in ("ids", "manifest", "errors", "limits", "assignment", "projection", "tolerance", "sim.compute")
)
COMPUTE_FOR_DAEMON = tuple(f"crowdsurf.peer.compute.{name}" for name in ("client", "segments", "errors"))
COMPUTE_FOR_SIMULATION = tuple(f"crowdsurf.peer.compute.{name}" for name in ("shared", "attacks", "rules"))
SIMULATION = ("peer/simulate.py", "peer/simulate_options.py", "peer/robustness.py")
"""A simulated swarm computes in its own process, so these may load the worker's code when they need it."""

# What may be imported only in some places: module -> path prefixes. `tests/` may import all of them.
PLACES: dict[str, tuple[str, ...]] = {
    "torch": ("peer/compute/",),
    "numpy": ("peer/compute/",),
    "safetensors": ("peer/compute/",),
    "sklearn": ("peer/compute/",),
    "trio": ("peer/transport/pylibp2p.py",),
    "libp2p": ("peer/transport/pylibp2p.py",),
    "hivemind": ("peer/transport/", "dht/hivemind"),
    "asyncio": ("peer/", "cli/", "dht/memory.py", "dht/hivemind"),
    "uvloop": ("peer/", "cli/"),
    "time": ("peer/clock.py", "peer/keys.py"),
    "datetime": ("peer/clock.py", "peer/keys.py"),
    "random": ("peer/clock.py", "peer/keys.py", "protocol/sim/"),
    "secrets": ("peer/clock.py", "peer/keys.py"),
    "uuid": ("peer/clock.py", "peer/keys.py"),
    "os.urandom": ("peer/clock.py", "peer/keys.py"),
    "os.getrandom": ("peer/clock.py", "peer/keys.py"),
}
UNSAFE_IMPORTS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
UNSAFE_NAMES = ("torch.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
BROAD_EXCEPT_REASON = "# our own bug:"
LEFTOVERS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")


@dataclass(frozen=True)
class Source:
    """One file of the project: its path from the root with forward slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")

    def inside(self, *prefixes: str) -> bool:
        return self.path.startswith(prefixes)

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Line and full dotted name of everything imported, `from a import b` as `a.b`; also inside functions."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        return found

    @cached_property
    def attributes(self) -> list[tuple[int, str]]:
        """Line and text of every dotted use `name.attribute`, for example `os.urandom`."""
        return [
            (node.lineno, f"{node.value.id}.{node.attr}")
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        ]


Violations = Iterator[tuple[int, str]]
Check = Callable[[Source], Violations]


def within(name: str, *modules: str) -> bool:
    """Is `name` one of the modules or something inside one?"""
    return any(name == module or name.startswith(module + ".") for module in modules)


def imports_are_absolute(source: Source) -> Violations:
    for line, name in source.imports:
        if name.startswith("."):
            yield line, "relative import; write `from crowdsurf.… import …`"
        elif within(name, *FOLDERS):
            yield line, f"`{name}` is not ours when installed; write `crowdsurf.{name}`"


def imports_respect_layers(source: Source) -> Violations:
    """protocol → nothing · dht → protocol · peer/compute → some of protocol · peer → dht, protocol · cli → all."""
    folder = source.path.split("/")[0]
    allowed = {
        "protocol": ("crowdsurf.protocol",),
        "dht": ("crowdsurf.dht", "crowdsurf.protocol"),
        "peer": ("crowdsurf.peer", "crowdsurf.dht", "crowdsurf.protocol"),
        "cli": tuple(f"crowdsurf.{name}" for name in FOLDERS),
        "tests": ("crowdsurf", "tests"),
    }.get(folder, ())
    if source.inside("peer/compute/"):
        allowed = ("crowdsurf.peer.compute", *COMPUTE_PROTOCOL)
    for line, name in source.imports:
        if not within(name, "crowdsurf", "tests"):
            continue
        if not within(name, *allowed):
            yield line, f"{folder}/ must not import {name}"
        elif (
            source.inside("peer/")
            and not source.inside("peer/compute/")
            and within(name, "crowdsurf.peer.compute")
            and not within(name, *COMPUTE_FOR_DAEMON)
            and not (source.path in SIMULATION and within(name, *COMPUTE_FOR_SIMULATION))
        ):
            yield line, f"the daemon must not load the worker's code: {name}"


def protocol_is_pure(source: Source) -> Violations:
    if not source.inside("protocol/"):
        return
    for line, name in source.imports:
        simulated_chance = name == "random" and source.inside("protocol/sim/")
        if within(name, *PURE_FORBIDDEN) and not simulated_chance:
            yield line, f"protocol/ is pure and must not import {name}"


def imports_stay_in_their_place(source: Source) -> Violations:
    if source.is_test:
        return
    used = [(line, name) for line, name in source.attributes if name in PLACES]
    for line, name in source.imports + used:
        for module, places in PLACES.items():
            if within(name, module) and not source.inside(*places):
                yield line, f"{name} belongs in {' or '.join(places)} only"


def nothing_unsafe(source: Source) -> Violations:
    """No way from bytes to code; tests may try one to show that it is closed."""
    if source.is_test:
        return
    for line, name in source.imports:
        if within(name, *UNSAFE_IMPORTS, *UNSAFE_NAMES):
            yield line, f"{name} can run code from data"
    for line, name in source.attributes:
        if name in UNSAFE_NAMES:
            yield line, f"{name} can run code from data"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield node.lineno, f"{node.id} runs code from data"


def nothing_sleeps(source: Source) -> Violations:
    """`time.sleep` nowhere; in tests no other sleep either, but `sleep(0)`, which only lets others run."""
    for line, name in source.imports + source.attributes:
        if name == "time.sleep":
            yield line, "time.sleep blocks; wait for an event"
    for line, name in source.imports:
        if source.is_test and name in ("asyncio.sleep", "trio.sleep"):
            yield line, "a test must not sleep; wait for an event"
    for node in ast.walk(source.tree):
        if not (source.is_test and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        only_yields = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        if ast.unparse(node.func) in ("asyncio.sleep", "trio.sleep") and not only_yields:
            yield node.lineno, "a test must not sleep; wait for an event"


def excepts_are_narrow(source: Source) -> Violations:
    """A handler that only tidies up and ends with a bare `raise` hides nothing and may be broad."""
    if source.is_test:
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)
        passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if broad and not passes_on and BROAD_EXCEPT_REASON not in source.lines[node.lineno - 1]:
            yield node.lineno, f"name the errors, or give the reason on the line: `{BROAD_EXCEPT_REASON} …`"


def nothing_asserts(source: Source) -> Violations:
    if not source.inside("protocol/", "dht/", "peer/"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert is gone under -O and blames nobody; raise one of protocol/errors.py"


def functions_are_short(source: Source) -> Violations:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX} are allowed"


def files_are_short(source: Source) -> Violations:
    if len(source.lines) > FILE_LINES_MAX:
        yield 1, f"the file has {len(source.lines)} lines, at most {FILE_LINES_MAX} are allowed"


def files_say_what_they_are(source: Source) -> Violations:
    if source.tree.body and ast.get_docstring(source.tree) is None:
        yield 1, "begin the file with a docstring: what it is and the idea behind it"


def nothing_left_over(source: Source) -> Violations:
    for number, line in enumerate(source.lines, start=1):
        if LEFTOVERS.search(line):
            yield number, "finish it, or file an issue and remove the note"


CHECKS: tuple[Check, ...] = (
    imports_are_absolute,
    imports_respect_layers,
    protocol_is_pure,
    imports_stay_in_their_place,
    nothing_unsafe,
    nothing_sleeps,
    excepts_are_narrow,
    nothing_asserts,
    functions_are_short,
    files_are_short,
    files_say_what_they_are,
    nothing_left_over,
)


def unused_vectors(vectors: list[str], test_texts: list[str]) -> list[str]:
    """Vector files (paths inside tests/vectors) that no test names, neither by file name nor by folder."""
    everything = "\n".join(test_texts)
    return [
        path
        for path in vectors
        if not any(re.search(rf"['\"/]{re.escape(part)}['\"/]", everything) for part in path.split("/"))
    ]


def package_mismatches(listed: list[str], folders_with_init: list[str]) -> list[str]:
    """Packages that pyproject.toml lists without a folder, and folders with `__init__.py` it does not list."""
    existing = ["crowdsurf." + folder.replace("/", ".") for folder in folders_with_init]
    missing = [f"{name} is listed but has no folder with __init__.py" for name in sorted(set(listed) - set(existing))]
    unlisted = [f"{name} exists but is not listed" for name in sorted(set(existing) - set(listed))]
    return missing + unlisted
