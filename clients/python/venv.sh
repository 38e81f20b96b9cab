# shellcheck shell=bash
# Sourced by generate.sh and example.sh: makes .venv hold exactly what requirements.txt locks, and this package.

if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "skipped: Python 3.10 with venv is not installed"
  exit 77
fi

# The copy of the lock file says what was installed, and is written last, so that a broken install is repeated.
if ! cmp -s requirements.txt .venv/requirements.txt; then
  python3 -m venv --clear .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  cp requirements.txt .venv/requirements.txt
fi
