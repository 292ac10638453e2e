"""Runs the Python of a page, in a process of its own: ``python -m tests.support.documents.run_page docs/enqueue.rst``.

* A block with a caption is a file of that name. It is written to the folder of the page and imported. If it is named
  ``test_….py`` or ``conftest.py``, pytest runs it at the end.
* All other blocks run in order in one module named ``page``, on the SDK's own stub, as tests of apps do.
* ``setups/<page>.py`` runs before them in the same module. It defines what the page takes for granted, such as
  ``send_welcome``; the package's public names and ``wrap_wsgi_app`` are always there. If it defines ``check(tasks)``,
  that is called at the end with the tasks that the page enqueued.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

from tests.support.pages import Block, blocks

SETUPS = Path(__file__).parent / "setups"


def python_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that are run."""
    return [block for block in blocks(page) if block.language == "python" and not block.not_executed]


def is_test(block: Block) -> bool:
    """Return whether pytest runs the block."""
    return block.caption.startswith(("test_", "conftest"))


def run(page: Path, folder: Path) -> None:
    """Run the blocks of a page; ``folder`` is an empty one."""
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    # Before the package reads its settings: this makes the key that tests need.
    from deferred_middleware.testing import capture_tasks  # isort: skip
    from google.appengine.api import wrap_wsgi_app

    import deferred_middleware

    module = types.ModuleType("page")
    sys.modules["page"] = module
    module.__dict__.update({name: getattr(deferred_middleware, name) for name in deferred_middleware.__all__})
    module.__dict__["wrap_wsgi_app"] = wrap_wsgi_app
    setup = SETUPS / f"{page.stem.replace('-', '_')}.py"
    if setup.exists():
        exec(compile(setup.read_text(), str(setup), "exec"), module.__dict__)
    with capture_tasks() as tasks:
        for block in python_blocks(page):
            if block.caption:
                path = folder / block.caption
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.body)
                if not is_test(block):
                    importlib.invalidate_caches()
                    importlib.import_module(block.caption.removesuffix(".py").replace("/", "."))
            else:
                # Empty lines before the code, so that a traceback has the line of the page.
                code = "\n" * (block.line + 1) + block.body
                exec(compile(code, str(page), "exec"), module.__dict__)
        if "check" in module.__dict__:
            module.check(tasks)
    if any(is_test(block) for block in python_blocks(page)):
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
        subprocess.run(pytest, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
