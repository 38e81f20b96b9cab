#!/usr/bin/env bash
# Generates gen from the contract.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=clients/node/modules.sh
source ./modules.sh

npm run --silent generate
