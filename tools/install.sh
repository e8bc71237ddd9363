#!/bin/sh
# Make .venv and install this checkout into it, editable, in the versions of constraints.txt: with uv, else with pip.
# Usage: tools/install.sh [EXTRAS]; PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-dev}
venv=.venv
python=$venv/bin/python
suits='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c "$suits" >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    {
        echo "trimtab needs Python 3.11 or newer with its venv module; tried: ${PYTHON:-python3.11 to 3.13, python3, python}."
        echo "hint: install one (on Debian and Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python"
    } >&2
    return 1
}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    found=$(find_python)
    echo "making $venv with $("$found" --version)"
    "$found" -m venv --clear "$venv"
fi
if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m ensurepip --upgrade >/dev/null
fi
with_uv() {
    "$venv/bin/uv" pip install --quiet --python "$python" -c constraints.txt -e ".[$extras]" "$@"
}

echo "installing torch and the rest into $venv (some gigabytes; a minute with uv)"
"$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv || echo "no uv here"
if with_uv || with_uv --system-certs; then
    exit 0
fi
echo "uv did not manage; installing with pip, which takes a few minutes"
"$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
