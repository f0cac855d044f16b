#!/bin/sh
# Make or refresh a virtual environment with this checkout in it, editable and with the developers' tools.
# Usage: make-venv.sh DIRECTORY       Environment: PYTHON, an interpreter to use instead of searching.
set -eu

venv=$1
wanted='3.11 to 3.13'

# A name on the PATH may be a version manager's shim that only prints an error, so each candidate is run.
fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

has_uv() {
    uv --version >/dev/null 2>&1
}

reusable() {
    [ -z "${PYTHON:-}" ] && fits "$venv/bin/python" && { has_uv || "$venv/bin/python" -m pip --version >/dev/null 2>&1; }
}

create() {
    python=$(find_python)
    if [ -n "${PYTHON:-}" ] && [ -z "$python" ]; then
        echo "error: PYTHON=$PYTHON is not Python $wanted: name another one, or leave PYTHON empty" >&2
        exit 1
    fi
    if [ -z "$python" ] && has_uv; then
        python=3.12 # uv fetches it
    fi
    if [ -z "$python" ]; then
        echo "error: no Python $wanted on the PATH: install one, name it (make PYTHON=/path/to/python3.12)," >&2
        echo "       or install uv, which fetches one by itself" >&2
        exit 1
    fi
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
        echo "error: $venv exists and is not a virtual environment: move it away, or name another with VENV=" >&2
        exit 1
    fi
    rm -rf "$venv"
    if has_uv; then
        uv venv --quiet --python "$python" "$venv"
    elif ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        echo "error: $python cannot make a virtual environment: install its venv module (Debian: python3-venv)" >&2
        exit 1
    fi
}

# Compiled once here, or every process would compile torch anew where bytecode may not be written.
install() {
    if has_uv; then
        uv pip install --compile-bytecode --python "$venv/bin/python" --editable '.[dev]'
    elif "$venv/bin/python" -m pip install --quiet uv; then
        "$venv/bin/python" -m uv pip install --compile-bytecode --python "$venv/bin/python" --editable '.[dev]'
    else
        echo "uv is not to be had: installing with pip, which takes longer" >&2
        "$venv/bin/python" -m pip install --editable '.[dev]'
    fi
}

reusable || create
install
