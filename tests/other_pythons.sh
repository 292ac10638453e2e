#!/bin/sh
# Runs the unit tests on every supported Python that is installed, except the one in .venv, which has already run them.
# Here, tests with random examples try fewer of them.
# Then each Python, including the one in .venv, reads the payloads that the others have written.
set -eu
cd "$(dirname "$0")/.."

managed=$(pyenv root 2>/dev/null || true)
ours=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ran=""
pythons=.venv/bin/python
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
    venv=.venvs/$version
    if [ ! -e "$venv/.tests" ] || [ setup.cfg -nt "$venv/.tests" ]; then
        [ -e "$venv/bin/python" ] || "$found" -m venv "$venv"
        "$venv/bin/python" -m pip install -q -e '.[tests]'
        touch "$venv/.tests"
    fi
    echo "unit tests on Python $version"
    "$venv/bin/python" -m pytest -q -n "$(nproc 2>/dev/null || echo 2)" --hypothesis-profile=fewer tests/unit
    ran="$ran $version"
    pythons="$pythons $venv/bin/python"
done
echo "unit tests ran on Python $ours${ran}"

payloads=$(mktemp -d)
trap 'rm -r "$payloads"' EXIT
for python in $pythons; do
    "$python" -m tests.support.payloads write "$payloads/by-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])').json"
done
for python in $pythons; do
    "$python" -m tests.support.payloads read "$payloads"/*.json
done
