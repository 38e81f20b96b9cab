# shellcheck shell=bash
# Owns the order in which the parts start and stop, and the promise that a failed start leaves nothing running.

# Started together because the broker and the registry take seconds each; the registry needs Postgres, which takes none.
start_parts() {
  kafka_start
  postgres_start
  postgres_wait
  registry_start
  kafka_wait
  registry_wait
}

start_ours() {
  apply_topics
  gateway_start
  processor_start
  gateway_wait
  processor_wait
}

start_stack() {
  lock_home
  start_parts
  start_ours
  unlock_home
}

# First what takes events in, then what decides them, then what both of them need. Postgres goes last, because the
# registry writes to it; SIGINT is its fast shutdown, which does not wait for clients to leave.
stop_in_order() {
  stop_named TERM gateway "$@"
  stop_named TERM processor "$@"
  stop_named TERM "registry kafka" "$@"
  stop_named INT postgres "$@"
}

# stop_named SIGNAL "STAGE'S PARTS" PART...: stops those of the stage that are among the parts.
stop_named() {
  local signal="$1" stage="$2" name chosen=()
  shift 2
  for name in $stage; do
    if [[ " $* " == *" $name "* ]]; then chosen+=("$name"); fi
  done
  ((${#chosen[@]} == 0)) || stop_parts "$signal" "${chosen[@]}"
}

stop_started() {
  ((${#STARTED[@]})) || return 0
  say "stopping ${STARTED[*]}"
  stop_in_order "${STARTED[@]}"
  STARTED=()
}

# Every way out of the script passes here. A second Ctrl-C does not interrupt the stopping, whose time is bounded.
on_exit() {
  local code=$?
  trap - EXIT
  trap '' INT TERM HUP
  cluster_down
  stop_started
  exit "$code"
}

stop_on_exit() {
  trap on_exit EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
}

stop_stack() {
  lock_home
  stop_in_order gateway processor registry kafka postgres
  unlock_home
}

purge_stack() {
  postgres_purge
  rm -rf "${DATA:?}"
  mkdir -p "$DATA"
}

print_addresses() {
  cat <<ADDRESSES
  gateway (gRPC)        127.0.0.1:$PORT_GATEWAY
  gateway admin         http://127.0.0.1:$PORT_GATEWAY_ADMIN/metrics
  processor admin       http://127.0.0.1:$PORT_PROCESSOR_ADMIN/metrics
  Kafka                 127.0.0.1:$PORT_KAFKA
  Postgres              postgres://sluice@127.0.0.1:$PORT_POSTGRES/sluice
  schema registry       http://127.0.0.1:$PORT_REGISTRY/apis/ccompat/v7
  logs                  $LOG
ADDRESSES
}
