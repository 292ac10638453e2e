"""Demonstrate the gallery: start it on the local server, upload a dozen photographs, and follow their tasks.

``python demo.py`` keeps serving until Ctrl-C, with some more tasks to look at on the server's page. ``python demo.py
--exit`` checks the result. It ends with status 0 if
every photograph is complete, and otherwise with status 1 and the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo_client import GalleryClient
from demo_photographs import PHOTOGRAPHS, PhotographsMissingError, folder
from demo_server import DemoError, Interrupted, LocalServer, StopSignals, is_free, local_server

PATIENCE_SECONDS = 180
"""How long to wait without any progress."""
POLL_SECONDS = 0.25
EXPECTED_SERVICE = "background"
ENDED = ("done", "failed")

COLUMNS = ("task", "function", "piece", "service", "queue", "attempts", "ms", "request id")
NUMBERS = ("attempts", "ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit status."""
    options = parse(arguments)
    signals = StopSignals()
    shown = False
    try:
        photographs = folder()
        with data_dir(options.data_dir) as directory, local_server(directory, port(options.port), signals) as server:
            print(f"The page with its queues and tasks: {server.page}\n")
            print("The gallery runs as two services on the local server:")
            for service, address in server.addresses.items():
                print(f"    {service:<12}{address}")
            client = GalleryClient(server.addresses["default"])
            started_seconds = time.monotonic()
            ids = upload(client, photographs, signals)
            photos = follow(client, server, ids, signals)
            print_table(photos)
            summarise(photos, server, time.monotonic() - started_seconds)
            complain(shortcomings(photos))
            if options.samples or not options.exit:
                enqueue_samples(server, signals)
            if options.exit:
                complain(missing(client, photos))
                return 0
            print(
                f"\nOpen {server.addresses['default']} in a browser, and {server.page} for its tasks; Ctrl-C ends it.",
                flush=True,
            )
            shown = True
            while True:
                signals.pause(1)
                server.check_alive()
    except Interrupted as stop:
        if shown:
            return 0
        print(f"\nEnded by {stop} before every photograph was complete.", file=sys.stderr)
        return 128 + stop.signum
    except (DemoError, PhotographsMissingError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="The gallery on the local server, with a dozen photographs.")
    parser.add_argument("--exit", action="store_true", help="check the result and end, instead of serving on")
    parser.add_argument(
        "--samples",
        action="store_true",
        help="with --exit too: enqueue tasks that wait, that fail, and that become a dead letter",
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="the page's port (default: %(default)s; 0: any that is free)"
    )
    parser.add_argument("--data-dir", type=Path, help="where photographs and tasks are kept (default: a temporary one)")
    return parser.parse_args(arguments)


def enqueue_samples(server: LocalServer, signals: StopSignals) -> None:
    """Enqueue tasks that are worth a look on the page: scheduled ones, one that is retried, a dead letter."""
    for hours, weekday in enumerate(("Monday", "Tuesday", "Wednesday"), 1):
        signals.check()
        server.call("--countdown", str(hours * 3600), "samples:send_digest", weekday)
    server.call("samples:order_print", "Astronaut", "copies=2")
    server.call("samples:import_album", "https://photos.example/nothing")
    print(f"\nOn {server.page} there are also three scheduled tasks, one that fails and is retried, and a dead letter.")


@contextlib.contextmanager
def data_dir(chosen: Path | None) -> Iterator[Path]:
    """Yield the directory for the server's files: the chosen one, or a temporary one."""
    if chosen is not None:
        yield chosen.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="gallery-") as directory:
        yield Path(directory)


def port(wanted: int) -> int:
    """Return the port to use. The next ports, for the other services, must be free as well."""
    if wanted and not (is_free(wanted) and is_free(wanted + 1)):
        print(f"Port {wanted} or {wanted + 1} is in use, so that free ones are taken.")
        return 0
    return wanted


def upload(client: GalleryClient, photographs: Path, signals: StopSignals) -> list[str]:
    """Upload the photographs, print their authors, and return their IDs."""
    print(f"\nUploading {len(PHOTOGRAPHS)} photographs that come with scikit-image:")
    ids = []
    for photograph in PHOTOGRAPHS:
        signals.check()
        ids.append(client.upload(photograph.file, (photographs / photograph.file).read_bytes()))
        print(f"    {photograph.title:<20}{photograph.author:<28}{photograph.licence}", flush=True)
    return ids


def follow(
    client: GalleryClient, server: LocalServer, ids: Sequence[str], signals: StopSignals
) -> list[dict[str, Any]]:
    """Show the progress until all tasks are done, and return the photographs. Give up if there is no progress."""
    print()
    line = ProgressLine()
    moved_seconds, made_before = time.monotonic(), -1
    while True:
        server.check_alive()
        photos = client.photos(ids)
        states = [piece["state"] for photo in photos for piece in photo["pieces"]]
        made = states.count("done")
        complete = sum(photo["state"] == "complete" for photo in photos)
        line.show(
            f"{made} of {len(states)} tasks done, {complete} of {len(ids)} photographs complete",
            made / max(1, len(states)),
        )
        if all(state in ENDED for state in states):
            line.close()
            return photos
        if made != made_before:
            moved_seconds, made_before = time.monotonic(), made
        if time.monotonic() - moved_seconds > PATIENCE_SECONDS:
            line.close()
            complain([*shortcomings(photos), f"nothing got done for {PATIENCE_SECONDS} s.\n{server.log_end()}"])
        signals.pause(POLL_SECONDS)


class ProgressLine:
    """A progress line that is rewritten on a terminal. Elsewhere, each change prints a line."""

    _BAR = 30

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._last = ""

    def show(self, text: str, share: float) -> None:
        """Show ``text``, with a bar for the completed ``share`` (0 to 1)."""
        if text == self._last:
            return
        self._last = text
        if self._live:
            bar = "#" * round(share * self._BAR)
            print(f"\r\033[K    [{bar:.<{self._BAR}}] {text}", end="", flush=True)
        else:
            print(f"    {text}", flush=True)

    def close(self) -> None:
        """End the line."""
        if self._live and self._last:
            print(flush=True)


def print_table(photos: Sequence[dict[str, Any]]) -> None:
    """Print one row for each task, with the app's record of its run."""
    rows = [
        {
            "task": piece.get("task") or "-",
            "function": piece.get("function") or "-",
            "piece": f"{photo['filename'].rpartition('.')[0]} {piece['name']}",
            "service": piece.get("service") or "-",
            "queue": piece.get("queue") or "-",
            "attempts": str(piece.get("attempts") or "-"),
            "ms": f"{piece['milliseconds']:.1f}" if "milliseconds" in piece else "-",
            "request id": piece.get("request_id") or "-",
        }
        for photo in photos
        for piece in photo["pieces"]
    ]
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in COLUMNS}
    print()
    for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), {name: "-" * widths[name] for name in COLUMNS}, *rows]:
        cells = [
            row[name].rjust(widths[name]) if name in NUMBERS else row[name].ljust(widths[name]) for name in COLUMNS
        ]
        print("  ".join(cells).rstrip())


def summarise(photos: Sequence[dict[str, Any]], server: LocalServer, seconds: float) -> None:
    """Print a summary."""
    pieces = [piece for photo in photos for piece in photo["pieces"]]
    made = [piece for piece in pieces if piece["state"] == "done"]
    complete = sum(photo["state"] == "complete" for photo in photos)
    working_seconds = sum(piece["milliseconds"] for piece in made) / 1000
    print(
        f"\n{complete} of {len(photos)} photographs complete: {len(made)} of {len(pieces)} tasks done"
        f" in {seconds:.1f} s; their attempts took {working_seconds:.1f} s together."
    )
    line = server.log_line("POST /_cb/deferred/")
    if line is not None:
        print(f"Each went through the app's own middleware, which logged it:\n    {line.strip()}", flush=True)


def shortcomings(photos: Sequence[dict[str, Any]]) -> list[str]:
    """Describe each piece that is not done."""
    return [
        f"{photo['filename']}, {piece['name']}: {piece['state']}"
        + (f" at attempt {piece['attempts']}: {piece['error']}" if piece.get("error") else "")
        for photo in photos
        for piece in photo["pieces"]
        if piece["state"] != "done"
    ]


def missing(client: GalleryClient, photos: Sequence[dict[str, Any]]) -> list[str]:
    """Check what the tasks made, and return the problems."""
    wrong = []
    if len(photos) != len(PHOTOGRAPHS):
        wrong.append(f"the gallery knows {len(photos)} of the {len(PHOTOGRAPHS)} photographs.")
    for photo in photos:
        name, original = photo["filename"], (photo["width"], photo["height"])
        shares = [swatch["share"] for swatch in photo["palette"] or []]
        if not shares or abs(sum(shares) - 1) > 0.01:
            wrong.append(f"{name}: its palette is {photo['palette']}, whose shares don't add up to 1.")
        for piece in photo["pieces"]:
            if piece.get("service") != EXPECTED_SERVICE:
                wrong.append(f"{name}, {piece['name']}: ran on {piece.get('service')}, not on {EXPECTED_SERVICE}.")
            if not piece.get("request_id"):
                wrong.append(f"{name}, {piece['name']}: no request id, so the app's middleware did not run.")
            if piece["name"] == "palette" or "url" not in piece:
                continue
            size = client.size_of_image(piece["url"])
            if not fits(size, original, int(piece["name"])):
                wrong.append(f"{name}, {piece['name']}: {size[0]} x {size[1]} px, from {original[0]} x {original[1]}.")
    return wrong


def fits(size: tuple[int, int], original: tuple[int, int], longest_px: int) -> bool:
    """Tell whether ``size`` is ``original`` scaled down to ``longest_px``, within one pixel."""
    ratio = min(1.0, longest_px / max(original))
    return all(abs(side - full * ratio) <= 1 for side, full in zip(size, original, strict=True))


def complain(wrong: Sequence[str]) -> None:
    """Raise :class:`DemoError` if there are problems."""
    if wrong:
        raise DemoError("not every photograph is complete.\n" + "\n".join(f"    {reason}" for reason in wrong))


if __name__ == "__main__":
    sys.exit(main())
