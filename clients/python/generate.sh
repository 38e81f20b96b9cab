#!/usr/bin/env bash
# Generates src/sluice/v1 from the contract. google.type.Money is not generated: googleapis-common-protos has it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=clients/python/venv.sh
source ./venv.sh

rm -f src/sluice/v1/*_pb2*
.venv/bin/python -m grpc_tools.protoc -I ../../proto \
  --python_out=src --pyi_out=src --grpc_python_out=src \
  ../../proto/sluice/v1/*.proto

# These are the stubs of files that define no service: they would be empty.
grep -L 'class .*Stub' src/sluice/v1/*_pb2_grpc.py | xargs --no-run-if-empty rm
