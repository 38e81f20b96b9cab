#!/usr/bin/env bash
# Installs what the example needs into node_modules, generates gen, and runs the example. Exits 77 without Node.js.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=clients/node/modules.sh
source ./modules.sh

[ -e gen/sluice/v1/ingest_pb.js ] || ./generate.sh
exec node example.js
