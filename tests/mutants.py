"""Change the code in small ways, and see whether the tests notice: ``make mutants``.

Cosmic Ray (https://cosmic-ray.readthedocs.io) makes the mutants. This program takes a sample of them, runs the tests of
the mutated module on each, and writes ``tests/mutants.rst``. A mutant that no test notices either shows a test that is
missing, or it behaves as the original: ``tests/mutants.json`` says why for each of those. At least 95 % of the others
have to be noticed.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
UNCHANGED: Final = ROOT / "tests" / "mutants.json"
REPORT: Final = ROOT / "tests" / "mutants.rst"
BAR: Final = 0.95
SEED: Final = 14
SAMPLE: Final = 40
"""The number of mutants of each subject."""
SLACK_SECONDS: Final = 30


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
        tests=("calls/test_allowlist.py", "calls/test_payload.py", "calls/test_any_callable.py"),
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
        tests=("engines", "enqueue", "execution/test_oidc.py", "server/api/test_cloud_tasks*.py"),
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
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text()
    original, seen = behaviour(source), set()
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if kind.arguments():
            continue  # operators that need to be told what to do
        operator = kind()
        count = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(get_ast(source)))
        for occurrence in range(count):
            changed = mutate_code(source, operator, occurrence)
            if changed is None or changed in seen:
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

    def is_noticed(self, mutant: Mutant | None, tests: Sequence[str], seconds: float) -> bool:
        """Run the tests on a mutant, or on the original; tell whether they fail, or don't end."""
        copy = self._free.get()
        path = copy / "deferred_middleware" / mutant.module if mutant is not None else None
        try:
            if path is not None and mutant is not None:
                self._write(path, mutant.source)
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "--hypothesis-seed=0", *tests]
            with subprocess.Popen(
                command,
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as run:
                try:
                    output, _ = run.communicate(timeout=seconds)
                except subprocess.TimeoutExpired:
                    os.killpg(run.pid, 9)
                    return True
            if mutant is None and run.returncode:
                sys.exit(output.decode())
            return run.returncode != 0
        finally:
            if path is not None:
                self._write(path, (ROOT / path.relative_to(copy)).read_text())
            self._free.put(copy)

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
    unchanged: list[tuple[Mutant, str]] = dataclasses.field(default_factory=list)
    unnoticed: list[Mutant] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of the mutants with another behaviour that the tests noticed."""
        return self.noticed / max(1, self.noticed + len(self.unnoticed))


def try_mutants(subject: str, copies: Copies, processes: int, size: int, seed: int, known: dict[str, str]) -> Tally:
    """Test a sample of a subject's mutants."""
    sample, count = sample_of(subject, size, seed)
    tally = Tally(subject=subject, all=count, sampled=len(sample))
    folder = ROOT / "tests" / "unit"
    tests = [
        str(path.relative_to(ROOT)) for pattern in SUBJECTS[subject].tests for path in sorted(folder.glob(pattern))
    ]
    started = time.monotonic()
    copies.is_noticed(None, tests, 900)
    seconds = 3 * (time.monotonic() - started) + SLACK_SECONDS
    to_try = [mutant for mutant in sample if mutant.key not in known]
    tally.unchanged = [(mutant, known[mutant.key]) for mutant in sample if mutant.key in known]
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for mutant, noticed in zip(
            to_try, pool.map(lambda mutant: copies.is_noticed(mutant, tests, seconds), to_try), strict=True
        ):
            if noticed:
                tally.noticed += 1
            else:
                tally.unnoticed.append(mutant)
                print(f"not noticed: {mutant.module}:{mutant.line}\n- {mutant.before}\n+ {mutant.after}", flush=True)
    return tally


def report(tallies: Sequence[Tally], seed: int) -> str:
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
        "``make mutants`` writes this page. It changes the code in small ways, and sees whether the unit tests",
        f"notice. Each sample is random, with the seed {seed}. A mutant that behaves as before needs no test; the",
        "share is that of the others.",
        "",
        *table,
        "",
    ]
    for title, mutants in (
        ("Not noticed", [(mutant, "") for tally in tallies for mutant in tally.unnoticed]),
        ("As before", [pair for tally in tallies for pair in tally.unchanged]),
    ):
        if mutants:
            lines += [title, "-" * len(title), ""]
        for mutant, why in mutants:
            lines += [f"``{mutant.module}``{': ' + why if why else ''}", "", "::", ""]
            lines += [f"    - {mutant.before.strip()}", f"    + {mutant.after.strip()}", ""]
    return "\n".join(lines)


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description="See whether the tests notice changes of the code.")
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), help=", ".join(SUBJECTS))
    parser.add_argument("--sample", type=int, default=SAMPLE, help="how many mutants of each subject")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write tests/mutants.rst")
    arguments = parser.parse_args()
    known = json.loads(UNCHANGED.read_text())
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(Path(folder), arguments.processes)
        for subject in arguments.subjects:
            tally = try_mutants(subject, copies, arguments.processes, arguments.sample, arguments.seed, known)
            print(f"{subject}: {tally.noticed} noticed, {len(tally.unnoticed)} not", flush=True)
            tallies.append(tally)
    if arguments.write:
        REPORT.write_text(report(tallies, arguments.seed))
    print(report(tallies, arguments.seed))
    return int(any(tally.share < BAR for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
