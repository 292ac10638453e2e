#!/bin/sh
# Runs the tests of the Django integration on the oldest supported Django, and on one with built-in tasks (6.0 or newer,
# which needs Python 3.12). There, asynchronous views are tested too, because Python 3.13 starts threads in another way
# than older versions. The other tests use the version in .venv.
set -eu
cd "$(dirname "$0")/.."
. tests/installing.sh

managed=$(pyenv root 2>/dev/null || true)

test_with() {
    python=$1 version=$2
    venv=.venvs/django-$version
    if [ ! -e "$venv/.tests" ] || [ setup.cfg -nt "$venv/.tests" ] || [ tests/django_versions.sh -nt "$venv/.tests" ]; then
        [ -e "$venv/bin/python" ] || "$python" -m venv "$venv"
        one_at_a_time "$venv/bin/python" -m pip install -q -e '.[tests]' "django==$version.*" 'flask[async]>=3'
        touch "$venv/.tests"
    fi
    echo "Django $version"
    TEST_DJANGO=$version "$venv/bin/python" -m pytest -q tests/integration/frameworks/test_django.py \
        tests/acceptance/test_async_views.py tests/acceptance/test_django_project.py
}

test_with .venv/bin/python 4.2
for candidate in python3.13 "$managed"/versions/3.13.*/bin/python .venv/bin/python python3.12 \
    "$managed"/versions/3.12.*/bin/python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
        test_with "$candidate" 6.1
        exit 0
    fi
done
echo "no Python 3.12 or newer was found; Django 6 was not tested" >&2
