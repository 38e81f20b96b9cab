# shellcheck shell=bash
# Owns the local schema registry: Apicurio on Postgres, so that the ids in stored records outlive a restart.

readonly REGISTRY_READY_TIMEOUT_S=90

registry_start() {
  if part_runs registry; then return 0; fi
  require_port_free REGISTRY
  require_port_free REGISTRY_ADMIN
  start_part registry env \
    APICURIO_STORAGE_KIND=sql \
    APICURIO_STORAGE_SQL_KIND=postgresql \
    APICURIO_DATASOURCE_URL="jdbc:postgresql://127.0.0.1:$PORT_POSTGRES/registry" \
    APICURIO_DATASOURCE_USERNAME=sluice \
    APICURIO_DATASOURCE_PASSWORD=unused-with-trust \
    QUARKUS_HTTP_HOST=127.0.0.1 QUARKUS_HTTP_PORT="$PORT_REGISTRY" \
    QUARKUS_MANAGEMENT_HOST=127.0.0.1 QUARKUS_MANAGEMENT_PORT="$PORT_REGISTRY_ADMIN" \
    "$JAVA" -Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError \
    -XX:+AutoCreateSharedArchive -XX:SharedArchiveFile="$CACHE/registry.jsa" -Xlog:cds=off -Xlog:aot=off \
    -jar "$CACHE/parts/registry/quarkus-run.jar"
}

registry_wait() {
  wait_for registry "$REGISTRY_READY_TIMEOUT_S" http_ok "http://127.0.0.1:$PORT_REGISTRY_ADMIN/health/ready"
}
