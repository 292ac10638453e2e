"""Check everything about a release that needs no network but the package index; ``make release-check`` runs this.

Each step prints its name, and the first one that fails ends the check with status 1:

* two builds of the commit, in different places, are equal byte by byte; they end up in ``dist/``;
* the description and the archives' names are valid (twine), and the archives have what they must have;
* the wheel installs in a clean environment of each supported Python that is found, and the README's example runs there;
* the installed wheel passes ``mypy --strict`` and pyright's ``--verifytypes``;
* the list of its components is written to ``dist/sbom.cdx.json`` (CycloneDX);
* the workflows have no known weakness (zizmor).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from build import ROOT, build, source_date_epoch

PACKAGE = "deferred_middleware"
_VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
_PLUGIN = f"_{PACKAGE}_pytest.py"
_IN_WHEEL = (
    _PLUGIN,
    f"{PACKAGE}/py.typed",
    f"{PACKAGE}/server/store/schema.sql",
    f"{PACKAGE}/server/admin/pages/templates/",
    f"{PACKAGE}/server/admin/pages/static/",
)
_IN_SDIST = ("CHANGELOG.rst", "LICENSE", "Makefile", "docs/index.rst", "docs/conf.py", "tests/conftest.py")
_WAIT_SECONDS = 60.0


def main() -> None:
    """Run all steps."""
    with tempfile.TemporaryDirectory(prefix="release-") as temporary:
        work = Path(temporary)
        wheel = _step("two builds are equal", lambda: check_reproducible(work))
        _step("the description is valid", lambda: _run([*_tool("twine"), "check", "--strict", *_files()]))
        _step("the archives are complete", check_contents)
        pythons = dict(find_pythons())
        for version, python in pythons.items():
            _step(
                f"the wheel runs the README's example on Python {version}",
                lambda p=python, v=version: check_wheel(wheel, p, work / v),
            )
        first = work / next(iter(pythons)) / "venv"
        _step("the installed types are complete", lambda: check_types(wheel, work))
        _step("the components are listed", lambda: write_sbom(first))
        _step(
            "the workflows are sound",
            # It is a program, and not a module of Python.
            lambda: _run([str(Path(sys.executable).with_name("zizmor")), "--offline", str(ROOT / ".github/workflows")]),
        )
    print("All checks passed. The files are in dist/.")


def check_reproducible(work: Path) -> Path:
    """Build two copies of the commit that differ in place, time and modes; return the wheel, in ``dist/``."""
    os.environ["SOURCE_DATE_EPOCH"] = str(source_date_epoch(ROOT))
    digests = []
    for number, umask in enumerate((0o022, 0o077)):
        copy = work / f"copy{number}" / ("deeper" * number or ".")
        os.umask(umask)
        copy.mkdir(parents=True)
        _run(["bash", "-c", f"git -C '{ROOT}' archive HEAD | tar -x -C '{copy}' --touch"])
        built = build(copy, work / f"dist{number}")
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in built})
    if digests[0] != digests[1]:
        raise SystemExit(f"two builds differ: {digests}")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    shutil.copytree(work / "dist0", dist)
    return next(dist.glob("*.whl"))


def check_contents() -> None:
    """Check that both archives have what they must have, and nothing that is made by running things."""
    (wheel,), (sdist,) = (ROOT / "dist").glob("*.whl"), (ROOT / "dist").glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as opened:
        sources = [name.partition("/")[2] for name in opened.getnames()]
    missing = [wanted for wanted in _IN_WHEEL if not any(name.startswith(wanted) for name in names)]
    missing += [wanted for wanted in _IN_SDIST if wanted not in sources]
    extra = [name for name in names if not name.startswith((f"{PACKAGE}/", f"{PACKAGE}-")) and name != _PLUGIN]
    extra += [name for name in [*names, *sources] if "__pycache__" in name or "docs/_build" in name]
    if missing or extra:
        raise SystemExit(f"missing: {missing}; not wanted: {extra}")


def find_pythons() -> Iterator[tuple[str, str]]:
    """Yield each supported version that is installed, with its interpreter."""
    managed = subprocess.run(["bash", "-c", "pyenv root 2>/dev/null"], capture_output=True, text=True, check=False)
    folder = Path(managed.stdout.strip() or "/nonexistent") / "versions"
    for version in _VERSIONS:
        for candidate in [f"python{version}", *map(str, folder.glob(f"{version}.*/bin/python"))]:
            code = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
            try:
                found = subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0
            except OSError:
                continue
            if found:
                yield version, candidate
                break


def check_wheel(wheel: Path, python: str, work: Path) -> None:
    """Install the wheel in a new environment, and do what the README says."""
    venv, folder = work / "venv", work / "app"
    folder.mkdir(parents=True)
    _run([python, "-m", "venv", str(venv)])
    binaries = venv / "bin"
    _run(
        [
            str(binaries / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            f"{wheel}[server]",
            "flask",
        ]
    )
    found = re.search(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", (ROOT / "README.rst").read_text())
    assert found is not None
    (folder / "main.py").write_text(re.sub(r"^    ", "", found[1], flags=re.MULTILINE))
    ready, output = folder / "ready.json", folder / "output"
    command = [
        str(binaries / "deferred-middleware"),
        "serve",
        "main:app",
        "--port=0",
        "--admin-port=0",
        f"--ready-file={ready}",
    ]
    with output.open("wb") as stream:
        server = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for(lambda: ready.exists(), output)
        url = json.loads(ready.read_text())["services"]["default"]
        request = urllib.request.Request(f"{url}/signup/ann", data=b"", method="POST")
        with urllib.request.urlopen(request, timeout=_WAIT_SECONDS) as response:
            assert response.status == 202
        _wait_for(lambda: re.search(r"welcome to main ann", output.read_text()) is not None, output)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(_WAIT_SECONDS)


def check_types(wheel: Path, work: Path) -> None:
    """Check the types of the installed wheel, as users' checkers see them."""
    venv = work / "types"
    _run([sys.executable, "-m", "venv", str(venv)])
    python = str(venv / "bin" / "python")
    packages = ["mypy", "pyright[nodejs]", "types-WebOb", "types-protobuf", "flask", "django", "django-stubs"]
    _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[server]", *packages])
    program = work / "program.py"
    lines = (f"from {PACKAGE} import defer", "def f(x: int) -> None: ...", "defer(f, 1, _countdown=3)", "")
    program.write_text("\n".join(lines))
    _run([python, "-m", "mypy", "--strict", str(program)], cwd=work)
    verified = [python, "-m", "pyright", "--verifytypes", PACKAGE, "--ignoreexternal"]
    # Pyright looks for the package in the first Python of the PATH; --pythonpath doesn't change that.
    environ = os.environ | {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(verified, cwd=work, env=environ, capture_output=True, text=True, check=False)
    untyped = done.stdout.partition("Symbols used in public interface:")[2].partition("Symbols exported by")[0].strip()
    if "Type completeness score: 100%" not in done.stdout or untyped:
        raise SystemExit((untyped or done.stdout)[-4000:] + done.stderr)


def write_sbom(venv: Path) -> None:
    """Write what an installation consists of to ``dist/sbom.cdx.json``."""
    target = ROOT / "dist" / "sbom.cdx.json"
    _run(
        [
            *_tool("cyclonedx_py"),
            "environment",
            "--output-reproducible",
            "-o",
            str(target),
            str(venv / "bin" / "python"),
        ]
    )
    components = json.loads(target.read_text())["components"]
    assert {"webob", "appengine-python-standard"} <= {component["name"].lower() for component in components}


def _files() -> list[str]:
    return [str(path) for pattern in ("*.whl", "*.tar.gz") for path in (ROOT / "dist").glob(pattern)]


def _tool(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _wait_for(condition: object, output: Path) -> None:
    assert callable(condition)
    until = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"the server does not do what the README says:\n{output.read_text()}")
        time.sleep(0.1)


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}{done.stderr[-6000:]}")


def _step(name: str, run: object) -> Path:
    print(f"  {name} …", end="", flush=True)
    started = time.monotonic()
    assert callable(run)
    result = run()
    print(f" yes ({time.monotonic() - started:.0f} s)", flush=True)
    return result  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
