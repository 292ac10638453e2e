"""Builds an image from a Dockerfile and runs it, without Docker. It needs root, on Linux.

The base image is this machine's own file system with the Python of the tests, below an overlay that takes all changes.
The instructions are carried out in it one after the other, as the user and in the folder that they say. A container has
its own processes, of which its command is the first, its own network, and the overlay as its file system.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

WAIT_SECONDS = 60.0
_BASE = Path(sys.prefix)
_PROGRAMS = ("unshare", "nsenter", "chroot", "mount", "ip")


class Unavailable(Exception):
    """This machine can't do it."""


@dataclasses.dataclass
class Config:
    """What the instructions of a Dockerfile have set."""

    user: str = "root"
    folder: str = "/"
    entry: list[str] = dataclasses.field(default_factory=list)
    command: list[str] = dataclasses.field(default_factory=list)
    health_check: list[str] = dataclasses.field(default_factory=list)
    environ: dict[str, str] = dataclasses.field(default_factory=dict)
    ports: list[str] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)


def instructions(dockerfile: Path, target: str | None = None) -> list[tuple[str, str]]:
    """Return the instructions that lead to ``target``, by default the last stage: their words and arguments."""
    text = "".join(line for line in dockerfile.read_text().splitlines(True) if not line.lstrip().startswith("#"))
    stages: dict[str, list[tuple[str, str]]] = {}
    stage: list[tuple[str, str]] = []
    for line in text.replace("\\\n", "").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages.setdefault(name.strip() or base, [])
            stage += stages.get(base, [("FROM", base)])
        elif word:
            stage.append((word, rest.strip()))
    return stages[target] if target else stage


class Image:
    """An image that is built during the ``with`` block, in the folder ``scratch``."""

    def __init__(self, scratch: Path, dockerfile: Path, context: Path, target: str | None = None) -> None:
        self.config = Config()
        self.scratch = scratch
        self._dockerfile = dockerfile
        self._context = context
        self._instructions = instructions(dockerfile, target)

    def __enter__(self) -> Image:
        """Build the image. Raises :class:`Unavailable`, and ``AssertionError`` if an instruction fails."""
        if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
            raise Unavailable(f"there is no {missing[0]}")
        # The mounts end with this process, which ends with this one.
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        try:
            if self._holder.stdout.readline() != b"ready\n":
                raise Unavailable("only root may have mounts of its own")
            self._mount()
            for word, rest in self._instructions:
                self._carry_out(word, rest)
        except BaseException:
            self.__exit__()
            raise
        return self

    def build_on(self, target: str) -> Image:
        """Build a further stage, in the same file system. Two stages must not differ in it."""
        image = copy.copy(self)
        image.config = copy.deepcopy(self.config)
        image._instructions = instructions(self._dockerfile, target)
        assert image._instructions[: len(self._instructions)] == self._instructions
        for word, rest in image._instructions[len(self._instructions) :]:
            image._carry_out(word, rest)
        return image

    def __exit__(self, *_: object) -> None:
        """Remove the image."""
        self._holder.kill()
        self._holder.communicate()

    @property
    def root(self) -> Path:
        """The file system of the image, as this process sees it."""
        return Path(f"/proc/{self._holder.pid}/root{self.scratch}/root")

    @property
    def holder(self) -> int:
        """The process that has the image's mounts."""
        return self._holder.pid

    def environ(self, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a process in the image."""
        path = f"{_BASE}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/", **self.config.environ, **(given or {})}

    def _mount(self) -> None:
        scratch = shlex.quote(str(self.scratch))
        script = f"""
            set -e
            mount -t tmpfs none {scratch}
            cd {scratch}
            mkdir upper work root
            mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
            mount --rbind /dev root/dev
            mount -t proc proc root/proc
        """
        done = self._in_the_mounts("sh", "-c", script)
        if done.returncode:
            raise Unavailable(done.stderr)
        if not (self.root / str(_BASE)[1:] / "bin" / "python").exists():
            raise Unavailable(f"{_BASE} is on a file system of its own")
        # Another user reaches the Python, and the image doesn't have the package yet.
        for folder in (*Path(sys.base_prefix).parents, *_BASE.parents):
            inside = self.root / str(folder)[1:]
            inside.chmod(inside.stat().st_mode | 0o111)
        self._run_in_image(f"{_BASE}/bin/python -m pip uninstall -q -y deferred_middleware 2>&1", self.environ())

    def _in_the_mounts(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--mount", "--target", str(self.holder), *command], capture_output=True, text=True, check=False
        )

    def _run_in_image(self, command: str, environ: Mapping[str, str]) -> None:
        words = [f"{name}={value}" for name, value in environ.items()]
        script = f"cd {shlex.quote(self.config.folder)} && {command}"
        chroot = ["chroot", f"--userspec={self.config.user}", f"{self.scratch}/root", "env", "-i", *words]
        done = self._in_the_mounts(*chroot, "sh", "-c", script)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"

    def _carry_out(self, word: str, rest: str) -> None:
        config = self.config
        if word == "FROM":
            assert re.fullmatch(r"python:3\.\d+-slim", rest), rest
        elif word == "RUN":
            # Everything that pip needs is there; it doesn't ask an index.
            self._run_in_image(rest, self.environ({"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}))
        elif word == "COPY":
            self._copy(*shlex.split(rest))
        elif word == "WORKDIR":
            config.folder = os.path.normpath(os.path.join(config.folder, rest))
            (self.root / config.folder[1:]).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            config.user = rest
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                config.environ[name] = value
        elif word in ("VOLUME", "EXPOSE"):
            (config.volumes if word == "VOLUME" else config.ports).extend(rest.split())
        elif word == "ENTRYPOINT":
            config.entry, config.command = json.loads(rest), []
        elif word == "CMD":
            # In the form of a text, a shell runs it.
            config.command = json.loads(rest) if rest.startswith("[") else ["sh", "-c", rest]
        elif word == "HEALTHCHECK":
            config.health_check = json.loads(rest.partition(" CMD ")[2])
        else:
            raise NotImplementedError(word)

    def _copy(self, *words: str) -> None:
        *sources, goal = words
        folder = self.root / self.config.folder[1:]
        for source in sources:
            found = glob.glob(str(self._context / source))
            assert found or "*" in source, f"COPY {source}: there is nothing"
            for each in map(Path, found):
                if each.is_dir():
                    shutil.copytree(each, folder / goal, dirs_exist_ok=True)
                else:
                    shutil.copy(each, folder / goal / each.name if goal.endswith("/") else folder / goal)


class Container:
    """A running container of an image."""

    def __init__(self, image: Image, log: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        config = image.config
        self._image = image
        self._log = log
        self._environ = image.environ(environ)
        command = [*config.entry, *(arguments or config.command)]
        root = f"{image.scratch}/root"
        words = [f"{name}={value}" for name, value in self._environ.items()]
        inside = ["chroot", f"--userspec={config.user}", root, "env", "-i", "-C", config.folder, *words, *command]
        unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
        script = f"mount -t proc proc {shlex.quote(root)}/proc && ip link set lo up && exec {shlex.join(inside)}"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["nsenter", "--mount", "--target", str(image.holder), *unshare, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := children.read_text().split()):
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline
        self.pid = int(found[0])
        """The process that is the first one in the container."""

    @property
    def output(self) -> str:
        """What the container has written."""
        return self._log.read_text()

    def run(self, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as ``docker exec`` does."""
        words = [f"{name}={value}" for name, value in self._environ.items()]
        inside = ["chroot", f"--userspec={user or self._image.config.user}", f"{self._image.scratch}/root"]
        entered = ["nsenter", "--mount", "--pid", "--net", "--target", str(self.pid), *inside, "env", "-i", *words]
        return subprocess.run([*entered, *command], capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)

    def is_healthy(self) -> bool:
        """Tell whether the health check succeeds."""
        return self.run(*self._image.config.health_check).returncode == 0

    def wait_until_healthy(self) -> None:
        """Wait until the health check succeeds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.is_healthy():
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output

    def processes(self) -> dict[int, int]:
        """Return the number of each process in the container, and of its user."""
        found = {}
        for status in Path(f"/proc/{self.pid}/root/proc").glob("[0-9]*/status"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(status.parent.name)] = int(re.findall(r"^Uid:\s+(\d+)", status.read_text(), re.MULTILINE)[0])
        return found

    def stop(self) -> int:
        """End the container as ``docker stop`` does, and return its status."""
        os.kill(self.pid, signal.SIGTERM)
        return self._process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        """Kill the container, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(image: Image, log: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Container]:
    """Run a container during the ``with`` block."""
    container = Container(image, log, *arguments, environ=environ)
    try:
        yield container
    finally:
        container.kill()
