#!/usr/bin/env bash
# Installs what the example needs into .venv, and runs it. Exits 77 when there is no Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=clients/python/venv.sh
source ./venv.sh

[ -e src/sluice/v1/ingest_pb2.py ] || ./generate.sh
exec .venv/bin/python example.py
