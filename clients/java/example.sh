#!/usr/bin/env bash
# Generates and compiles the client into target, and runs the example. Exits 77 when there is no JDK or no Maven.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=clients/java/maven.sh
source ./maven.sh

[ -e target/generated-sources/protobuf/com/sluice/v1/IngestServiceGrpc.java ] || ./generate.sh
# Maven takes seconds even when there is nothing to do.
if [ ! -e target/built ] || [ pom.xml -nt target/built ]; then
  maven process-classes
  touch target/built
fi
# The JDK compiles a single file as it starts it.
exec java -Djava.util.logging.config.file=logging.properties -cp 'target/classes:target/lib/*' Example.java
