"""``python -m tests.simulation SEED`` runs one seed and prints its story; ``--shrink`` leaves out what isn't needed."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.running import run_seed, shrink


def main() -> int:
    """Run a seed; return 1 if it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--no-shrink", action="store_true", help="if it fails, print the whole run")
    options = parser.parse_args()
    outcome = run_seed(options.seed)
    if outcome.failure is not None and not options.no_shrink:
        outcome = shrink(outcome)
    end = "Every promise was kept." if outcome.failure is None else f"FAILED: {outcome.failure!r}"
    sys.stdout.write(
        "\n".join(outcome.story) + f"\n{outcome.seconds:,.0f} s of simulated time, {outcome.begun} attempts. {end}\n"
    )
    return 0 if outcome.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
