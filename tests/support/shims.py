"""Small libraries in C that are loaded into a process under test, between it and the system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT

_COMPILE_SECONDS = 60.0


def compile_shim(source: str, directory: Path) -> Path:
    """Compile a source file of ``tests/support``; return the library, for ``LD_PRELOAD``."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.fail("This test needs a C compiler: apt-get install gcc libc6-dev (or the like).")
    library = directory / "shim.so"
    path = ROOT / "tests/support" / source
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(path), "-ldl", "-lpthread"]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
    assert compiled.returncode == 0, compiled.stderr
    return library
