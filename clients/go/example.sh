#!/usr/bin/env bash
# Builds the example into bin, and runs it. Exits 77 when there is no Go.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v go >/dev/null; then
  echo "skipped: Go is not installed"
  exit 77
fi

[ -e sluicev1/ingest.pb.go ] || ./generate.sh
# Built first, because `go run` adds a line of its own when the program fails.
go build -o bin/example ./example
exec bin/example
