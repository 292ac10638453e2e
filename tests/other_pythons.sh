#!/bin/sh
# Runs the unit tests on every supported Python that is installed, except the one in .venv, for which make unit runs
# them. Here, tests with random examples try fewer of them. All Pythons run at the same time, each in one process, which
# takes less processor time than several processes for each.
# Then each Python, including the one in .venv, reads the payloads that the others have written.
set -eu
cd "$(dirname "$0")/.."
. tests/installing.sh

managed=$(pyenv root 2>/dev/null || true)
ours=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ran=""
pythons=.venv/bin/python
results=$(mktemp -d)
payloads=$(mktemp -d)
trap 'rm -r "$results" "$payloads"' EXIT

run_unit_tests() {
    found=$1 version=$2
    venv=.venvs/$version
    if [ ! -e "$venv/.tests" ] || [ setup.cfg -nt "$venv/.tests" ]; then
        [ -e "$venv/bin/python" ] || "$found" -m venv "$venv"
        one_at_a_time "$venv/bin/python" -m pip install -q -e '.[tests]'
        touch "$venv/.tests"
    fi
    "$venv/bin/python" -m pytest -q -p no:xdist --hypothesis-profile=fewer tests/unit
}

for version in 3.10 3.11 3.12 3.13 3.14; do
    [ "$version" = "$ours" ] && continue
    found=""
    # A name on the PATH may be a version manager's stub that starts nothing, so each candidate is run.
    for candidate in "python$version" "$managed/versions/$version".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            found=$candidate
            break
        fi
    done
    [ -n "$found" ] || continue
    (run_unit_tests "$found" "$version"; touch "$results/$version.passed") >"$results/$version.log" 2>&1 &
    ran="$ran $version"
    pythons="$pythons .venvs/$version/bin/python"
done
wait
failed=""
for version in $ran; do
    echo "unit tests on Python $version"
    if [ -e "$results/$version.passed" ]; then
        tail -n 1 "$results/$version.log"
    else
        cat "$results/$version.log"
        failed="$failed $version"
    fi
done
[ -z "$failed" ] || { echo "unit tests failed on Python$failed" >&2; exit 1; }
echo "unit tests ran on Python${ran}, besides $ours"

for python in $pythons; do
    "$python" -m tests.support.payloads write "$payloads/by-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])').json"
done
for python in $pythons; do
    "$python" -m tests.support.payloads read "$payloads"/*.json
done
