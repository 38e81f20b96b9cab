#!/usr/bin/env bash
# Generates sluicev1 from the contract. google.type.Money is not generated: genproto has it. Needs Go, and Python for
# its packaged protoc; using the client needs neither this script nor Python, since the generated code is committed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

for tool in go python3; do
  if ! command -v "$tool" >/dev/null; then
    echo "skipped: $tool is not installed"
    exit 77
  fi
done

export GOBIN="$PWD/bin"
go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.85.1

module=github.com/sluice-gateway/sluice/clients/go
rm -rf sluicev1
PATH="$GOBIN:$PATH" .venv/bin/python -m grpc_tools.protoc -I ../../proto \
  --go_out=. --go_opt=module="$module" --go-grpc_out=. --go-grpc_opt=module="$module" \
  ../../proto/sluice/v1/*.proto
