"""Build the source archive and the wheel in ``dist/``, so that two builds of one commit are equal byte by byte.

Run ``python release/build.py [DIRECTORY]``. What differs between two machines is set to one value: the times of files
are the time of the commit (``SOURCE_DATE_EPOCH``, see https://reproducible-builds.org/docs/source-date-epoch/), their
modes are 644 or 755, their owner is 0, and their order is that of their names. The wheel is built from the source
archive, so what was published can be built from what was published.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of a copy without a repository: 2026-01-01.
_DEFAULT_EPOCH = 1_767_225_600


def source_date_epoch(root: Path) -> int:
    """Return the time that all files get, in seconds since 1970: the variable's, or that of the last commit."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    found = subprocess.run(
        ["git", "-C", str(root), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
    )
    return int(found.stdout) if found.returncode == 0 and found.stdout.strip() else _DEFAULT_EPOCH


def build(root: Path, target: Path) -> list[Path]:
    """Build both archives of the checkout ``root`` in ``target``; return their paths."""
    epoch = source_date_epoch(root)
    os.umask(0o022)
    environ = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        made, unpacked = Path(temporary, "made"), Path(temporary, "unpacked")
        _run_build("--sdist", root, made, environ)
        (archive,) = made.glob("*.tar.gz")
        sdist = target / archive.name
        normalize(archive, sdist, epoch)
        with tarfile.open(sdist) as opened:
            opened.extractall(unpacked, filter="data") if hasattr(tarfile, "data_filter") else opened.extractall(
                unpacked
            )
        (source,) = unpacked.iterdir()
        _run_build("--wheel", source, target, environ)
    (wheel,) = target.glob("*.whl")
    return [sdist, wheel]


def normalize(archive: Path, target: Path, epoch: int) -> None:
    """Copy a ``.tar.gz`` with equal times, owners and modes, and its members in the order of their names."""
    with (
        tarfile.open(archive) as old,
        target.open("wb") as stream,
        gzip.GzipFile("", "wb", fileobj=stream, mtime=epoch) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


def _run_build(kind: str, source: Path, target: Path, environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "build", kind, "--outdir", str(target), str(source)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    for path in build(ROOT, Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"):
        print(path)
