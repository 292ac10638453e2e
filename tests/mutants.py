"""Change the code in small ways, and see whether the tests notice: ``make mutants``.

Cosmic Ray (https://cosmic-ray.readthedocs.io) makes the mutants. This program takes a sample of them, runs the tests of
the mutated module on each, and writes ``tests/mutants.rst``. A mutant that no test notices either shows a test that is
missing, or it behaves as the original: ``tests/mutants.json`` says why for each of those. At least 95 % of the others
have to be noticed. ``make mutants`` tries all subjects; ``tests/mutants.py --write store`` only renews that row.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pickle
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
UNCHANGED: Final = ROOT / "tests" / "mutants.json"
RESULTS: Final = ROOT / "tests" / "mutants_results.json"
"""The last result of each subject, which the page shows."""
REPORT: Final = ROOT / "tests" / "mutants.rst"
BAR: Final = 0.95
SEED: Final = 14
SAMPLE: Final = 40
"""The number of mutants of each subject."""
TEST_SECONDS: Final = 120
"""How long one test may run. On a quiet machine the slowest takes a few seconds."""
SLACK_SECONDS: Final = 60
HUNG: Final = "the tests don't end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """Modules whose mutants the same tests have to notice. Both are patterns; the likeliest tests come first."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


SUBJECTS: Final = {
    "signature": Subject(
        modules=("wire/signature.py",),
        tests=(
            "wire/test_signature.py",
            "wire/test_nonces.py",
            "execution/test_trust*.py",
            "execution/test_middleware.py",
        ),
    ),
    "trust": Subject(
        modules=("execution/trust.py",),
        tests=("execution/test_trust*.py", "execution/test_middleware.py", "execution"),
    ),
    "allow-list": Subject(
        modules=("calls/allowlist.py",),
        tests=(
            "calls/test_allowlist.py",
            "calls/test_references_proxies.py",
            "calls/test_payload.py",
            "calls/test_any_callable.py",
        ),
    ),
    "pickle walk": Subject(
        modules=("wire/pickle_tree.py",),
        tests=("wire/test_pickle_*.py", "calls/test_allowlist.py", "server/admin/test_pickle_text.py"),
    ),
    "batches": Subject(modules=("enqueue/batch.py",), tests=("enqueue/test_batch.py", "enqueue")),
    "add": Subject(
        modules=("enqueue/add.py",), tests=("enqueue/test_add.py", "enqueue/test_many.py", "enqueue", "engines")
    ),
    "engines": Subject(
        modules=("engines/*.py",),
        # The answers of the queues are tested on servers that give each of them.
        tests=(
            "engines",
            "enqueue",
            "execution/test_oidc.py",
            "../integration/test_faults.py",
            "../integration/test_cloud_faults.py",
        ),
    ),
    "store": Subject(modules=("server/store/*.py",), tests=("server/store", "server/api", "server/admin")),
    "dispatch": Subject(modules=("server/dispatch/*.py",), tests=("server/dispatch", "server/store/test_store.py")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """A module with one change."""

    subject: str
    module: str
    """The path of the module in the package."""
    line: int
    before: str
    after: str
    """The line, before and after the change."""
    source: str

    @property
    def key(self) -> str:
        """What :data:`UNCHANGED` calls it. A change elsewhere in the module doesn't change it."""
        return f"{self.module}: {self.before.strip()} => {self.after.strip()}"


class _Behaviour(ast.NodeTransformer):
    """Removes what has no effect at run time: annotations, docstrings, and what only type checkers read."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node  # type: ignore[no-any-return]

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
        return self.generic_visit(node)


def behaviour(source: str) -> str:
    """Return what a module does at run time, as text to compare."""
    return ast.dump(_Behaviour().visit(ast.parse(source)))


def mutants_of(subject: str, path: Path) -> Iterator[Mutant]:
    """Yield the mutants of a module that differ from it at run time."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import MutationVisitor
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text()
    original, seen = behaviour(source), set()
    tree = get_ast(source)
    nodes = list(ast_nodes(tree))
    pickled = pickle.dumps(tree)  # each mutant needs a tree of its own, and parsing takes five times as long
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if kind.arguments():
            continue  # operators that need to be told what to do
        operator = kind()
        count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
        for occurrence in range(count):
            changed = MutationVisitor(occurrence, operator).walk(pickle.loads(pickled)).get_code()
            if changed in seen or changed == source:
                continue
            seen.add(changed)
            try:
                if behaviour(changed) == original:
                    continue
            except SyntaxError:
                continue
            yield _mutant(subject, path, source, changed)


def _mutant(subject: str, path: Path, source: str, changed: str) -> Mutant:
    before, after = source.splitlines(), changed.splitlines()
    line = next(
        (i for i, (one, other) in enumerate(zip(before, after, strict=False)) if one != other),
        min(len(before), len(after)) - 1,
    )
    module = str(path.relative_to(ROOT / "deferred_middleware"))
    return Mutant(subject=subject, module=module, line=line + 1, before=before[line], after=after[line], source=changed)


def sample_of(subject: str, size: int, seed: int) -> tuple[list[Mutant], int]:
    """Return a sample of a subject's mutants, and their number in all."""
    package = ROOT / "deferred_middleware"
    paths = sorted(path for pattern in SUBJECTS[subject].modules for path in package.glob(pattern))
    mutants = [mutant for path in paths for mutant in mutants_of(subject, path)]
    chosen = random.Random(f"{seed} {subject}").sample(mutants, min(size, len(mutants)))
    return sorted(chosen, key=lambda mutant: (mutant.module, mutant.line)), len(mutants)


_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "google.appengine.ext.testbed",
        "google.cloud.ndb",
        "google.cloud.tasks_v2",
        "google.cloud.tasks_v2beta3",
        "hypothesis.stateful",
        "jinja2",
        "requests",
        "ruamel.yaml",
        "waitress",
        "webob",
    ]
)
"""The processes of the tests come from one that has imported these: importing them is half of a short run's time."""


def _run_tests(copy: Path, tests: Sequence[str], output: str) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[0] = str(copy)
    import pytest

    options = ["-x", "-q", "-p", "no:randomly", "--hypothesis-seed=0"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of the modules above
    options += ["-o", f"faulthandler_timeout={TEST_SECONDS}", "-o", "faulthandler_exit_on_timeout=true"]
    status = int(pytest.main([*options, *tests]))
    sys.stdout.flush()
    os._exit(status)  # threads that a test leaves behind would keep the process


class Copies:
    """Copies of the repository, so that several mutants are tested at once and the work tree stays as it is."""

    def __init__(self, folder: Path, count: int) -> None:
        self._free: queue.Queue[Path] = queue.Queue()
        self._time = time.time()
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for number in range(count):
            copy = folder / str(number)
            for name in listed.stdout.splitlines():
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            self._free.put(copy)

    def what_notices(self, mutant: Mutant | None, tests: Sequence[str], seconds: float) -> str | None:
        """Run the tests on a mutant, or on the original. Return the first that fails; None if all pass."""
        copy = self._free.get()
        try:
            if mutant is None:
                return self._run(copy, tests, seconds)
            path = copy / "deferred_middleware" / mutant.module
            original = path.read_text()
            try:
                self._write(path, mutant.source)
                return self._run(copy, tests, seconds)
            finally:
                self._write(path, original)
        finally:
            self._free.put(copy)

    def _run(self, copy: Path, tests: Sequence[str], seconds: float) -> str | None:
        # A file, because a process that a test leaves behind keeps a pipe open.
        with tempfile.NamedTemporaryFile() as written:
            run = _FORKS.Process(target=_run_tests, args=(copy, tests, written.name))
            run.start()
            run.join(seconds)
            hung = run.is_alive()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid or 0, signal.SIGKILL)
            run.join()
            output = Path(written.name).read_text(errors="replace")
        if not run.exitcode:
            return None
        if hung or ("Timeout (" in output and " failed" not in output):
            return HUNG
        failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
        return failed[-1] if failed else output[-2000:]

    def _write(self, path: Path, source: str) -> None:
        path.write_text(source)
        # Python takes a compiled module to be up to date if the file has the same time, in seconds, and size.
        self._time += 2
        os.utime(path, (self._time, self._time))


@dataclasses.dataclass(kw_only=True)
class Tally:
    """What became of a subject's mutants."""

    subject: str
    all: int
    sampled: int = 0
    noticed: int = 0
    unchanged: list[str] = dataclasses.field(default_factory=list)
    unnoticed: list[str] = dataclasses.field(default_factory=list)
    """The keys of the mutants."""

    @property
    def share(self) -> float:
        """The share of the mutants with another behaviour that the tests noticed."""
        return self.noticed / max(1, self.noticed + len(self.unnoticed))


def try_mutants(
    subject: str, copies: Copies, processes: int, size: int, seed: int, known: dict[str, str], before: Tally | None
) -> Tally:
    """Test a sample of a subject's mutants, or only those of it that weren't noticed ``before``."""
    sample, count = sample_of(subject, size, seed)
    tally = Tally(subject=subject, all=count, sampled=len(sample))
    seconds = 3 * _seconds_of_original(copies, files_of(subject)) + SLACK_SECONDS
    tally.unchanged = [mutant.key for mutant in sample if mutant.key in known]
    to_try = [mutant for mutant in sample if mutant.key not in known]
    if before is not None:
        count = len(to_try)
        to_try = [mutant for mutant in to_try if mutant.key in before.unnoticed]
        tally.noticed = count - len(to_try)

    def notice(mutant: Mutant) -> str | None:
        tests = files_of(subject, mutant.module)
        noticed = copies.what_notices(mutant, tests, seconds)
        if noticed == HUNG:  # or the machine has become slower
            noticed = copies.what_notices(mutant, tests, 3 * _seconds_of_original(copies, tests) + SLACK_SECONDS)
        return noticed

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for mutant, noticed in zip(to_try, pool.map(notice, to_try), strict=True):
            print(f"{mutant.module}:{mutant.line}\n- {mutant.before}\n+ {mutant.after}\n{noticed or 'NOT NOTICED'}\n")
            sys.stdout.flush()
            if noticed is not None:
                tally.noticed += 1
            else:
                tally.unnoticed.append(mutant.key)
    return tally


def _seconds_of_original(copies: Copies, tests: Sequence[str]) -> float:
    started = time.monotonic()
    noticed = copies.what_notices(None, tests, 1800)
    if noticed is not None:
        sys.exit(f"The tests fail without a mutant: {noticed}")
    return time.monotonic() - started


def files_of(subject: str, module: str = "") -> list[str]:
    """Return the test files of a subject: first those with the module's name."""
    folder = ROOT / "tests" / "unit"
    paths = [path.resolve() for pattern in SUBJECTS[subject].tests for path in sorted(folder.glob(pattern))]
    name = f"test_{Path(module).stem}"
    own = [path for path in paths if path.name.startswith(name)]
    own += [path for parent in paths if parent.is_dir() for path in sorted(parent.rglob(f"{name}*.py"))]
    return [str(path.relative_to(ROOT)) for path in dict.fromkeys([*own, *paths])]


def report(tallies: Sequence[Tally], seed: int, known: dict[str, str]) -> str:
    """Return the results as a page."""
    rows = [
        (
            tally.subject,
            f"{tally.all:,}",
            str(tally.sampled),
            str(len(tally.unchanged)),
            str(tally.noticed),
            str(len(tally.unnoticed)),
            f"{100 * tally.share:.0f} %",
        )
        for tally in tallies
    ]
    head = ("Subject", "Mutants", "Sampled", "As before", "Noticed", "Unnoticed", "Share")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    table = [
        rule,
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head]),
    ]
    table += [
        rule,
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        rule,
    ]
    lines = [
        "Mutants",
        "=======",
        "",
        "``make mutants`` writes this page. It changes the code in small ways, and sees whether the tests",
        f"notice. Each sample is random, with the seed {seed}. A mutant that behaves as before needs no",
        "test; the share is that of the others.",
        "",
        *table,
        "",
    ]
    if missing := [subject for subject in SUBJECTS if all(tally.subject != subject for tally in tallies)]:
        lines += [f"Not measured yet: {', '.join(missing)}.", ""]
    for title, keys in (
        ("Not noticed", [key for tally in tallies for key in tally.unnoticed]),
        ("As before", [key for tally in tallies for key in tally.unchanged]),
    ):
        if keys:
            lines += [title, "-" * len(title), ""]
        for key in keys:
            module, _, change = key.partition(": ")
            before, _, after = change.partition(" => ")
            lines += [f"``{module}``{': ' + known[key] if key in known else ''}", "", "::", ""]
            lines += [f"    - {before}".rstrip(), f"    + {after}".rstrip(), ""]
    return "\n".join(lines)


def read_results() -> dict[str, Tally]:
    """Return the last results."""
    return {name: Tally(subject=name, **result) for name, result in json.loads(RESULTS.read_text()).items()}


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description="See whether the tests notice changes of the code.")
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), help=", ".join(SUBJECTS))
    parser.add_argument("--sample", type=int, default=SAMPLE, help="how many mutants of each subject")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="only try those that weren't noticed the last time")
    parser.add_argument("--write", action="store_true", help="write the results into tests/mutants.rst")
    arguments = parser.parse_args()
    known = json.loads(UNCHANGED.read_text())
    tallies = {}
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(Path(folder), arguments.processes)
        for subject in arguments.subjects:
            before = read_results()[subject] if arguments.again else None
            tally = try_mutants(subject, copies, arguments.processes, arguments.sample, arguments.seed, known, before)
            print(f"{subject}: {tally.noticed} noticed, {len(tally.unnoticed)} not", flush=True)
            tallies[subject] = tally
    tallies = read_results() | tallies
    shown = [tallies[subject] for subject in SUBJECTS if subject in tallies]
    text = report(shown, arguments.seed, known)
    if arguments.write:
        REPORT.write_text(text)
        results = {tally.subject: dataclasses.asdict(tally) for tally in shown}
        for result in results.values():
            del result["subject"]
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(text)
    return int(any(tallies[subject].share < BAR for subject in arguments.subjects))


if __name__ == "__main__":
    sys.exit(main())
