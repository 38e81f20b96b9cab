#!/usr/bin/env bash
# Generates target/generated-sources from the contract. google.type.Money is not generated: proto-google-common-protos
# has it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=clients/java/maven.sh
source ./maven.sh

# Makes example.sh compile again.
rm -f target/built
maven generate-sources
