# shellcheck shell=bash
# Owns the way without local processes: on a system that is neither Debian nor Ubuntu the same parts run in containers,
# as docker/compose.yaml describes them.

# compose_command: prints the Compose command that this machine has.
compose_command() {
  if docker compose version >/dev/null 2>&1; then
    echo docker compose
  elif have docker-compose; then
    echo docker-compose
  else
    return 1
  fi
}

require_engine() {
  if ! read -ra COMPOSE < <(compose_command) || ! docker info >/dev/null 2>&1; then
    die "this system is neither Debian nor Ubuntu, and no Docker engine answers: install Docker with Compose and start it"
  fi
  COMPOSE+=(--file "$ROOT/docker/compose.yaml")
}

compose_up() {
  require_engine
  "${COMPOSE[@]}" up --build --detach --wait || die "the containers did not come up: see ${COMPOSE[*]} logs"
}

compose_down() {
  require_engine
  if [[ -n $1 ]]; then "${COMPOSE[@]}" down --volumes; else "${COMPOSE[@]}" down; fi
}

# The publisher runs in a container as well, so that nothing but Docker is needed.
exec_compose_demo() {
  compose_up
  local volumes=() code=0
  if [[ -n $DEMO_FILE ]]; then
    volumes=(--volume "${DEMO_FILE%/*}:/input:ro")
    DEMO_ARGS+=(--file "/input/${DEMO_FILE##*/}")
  fi
  "${COMPOSE[@]}" --profile demo run --rm "${volumes[@]}" load demo --target http://gateway:50051 \
    --api-key "$DEMO_API_KEY" "${DEMO_ARGS[@]}" || code=$?
  if [[ -z $ONCE ]]; then
    print_invitation
    trap 'compose_down ""; exit 130' INT TERM
    while :; do sleep 1; done
  fi
  compose_down ""
  exit "$code"
}
