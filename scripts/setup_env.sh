#!/usr/bin/env bash
# Make .venv in the repository (Python >= 3.11) and install the package, editable, with what the tests need, in the tested
# versions. Does nothing when nothing that decides the outcome has changed. pip reads its own settings (PIP_*) as always.
# PYTHON=/path/to/python picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp_file=.venv/.installed
stamp() {
    { printf '%s\n' "$PWD" "${PYTHON:-}"; cat pyproject.toml setup.py constraints.txt; } | cksum
}
is_current() {
    [ -x .venv/bin/python ] && [ "$(cat "$stamp_file" 2>/dev/null)" = "$(stamp)" ]
}
if is_current; then exit 0; fi

# Of two commands started together one installs and the other waits.
if command -v flock >/dev/null; then
    exec 9<scripts/setup_env.sh
    flock 9
    if is_current; then exit 0; fi
fi

is_new_enough() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
python=
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}; do
    if is_new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup_env.sh: found no Python >= 3.11 with the venv module (PYTHON=${PYTHON:-not set})." >&2
    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or set PYTHON to it." >&2
    exit 1
fi

# An environment of this folder and Python version is updated; one that was copied here or broken is made anew.
is_ours='import os, sys; raise SystemExit(os.path.realpath(sys.prefix) != os.path.realpath(".venv") or %s != sys.version_info[:2])'
version=$("$python" -c 'import sys; print(sys.version_info[:2])')
# shellcheck disable=SC2059
if ! .venv/bin/python -c "$(printf "$is_ours" "$version")" 2>/dev/null || ! .venv/bin/pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear .venv
fi
echo "setup_env.sh: installing into $PWD/.venv ($("$python" --version)); the first time takes a few minutes" >&2
rm -f "$stamp_file"
.venv/bin/python -m pip install -qq -e ".[dev]" -c constraints.txt
stamp >"$stamp_file"
