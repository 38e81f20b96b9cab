# shellcheck shell=bash
# Owns the local gateway and processor: how they are built and started, and the topics that they need. They are the
# binaries that production runs.

readonly OURS_READY_TIMEOUT_S=60

build_binaries() {
  say "building (release)"
  cargo build --release --workspace --bins || die "the build failed: see the compiler's message above"
}

apply_topics() { quietly topics "creating the topics" "$BIN/sluicectl" topics apply; }

# A part that was started before the last build runs a file that is gone: it is started anew.
stop_if_rebuilt() {
  local pid
  if pid="$(part_pid "$1")" && [[ "$(readlink "/proc/$pid/exe")" == *" (deleted)" ]]; then
    say "$1 was rebuilt: starting it anew"
    stop_parts TERM "$1"
  fi
}

gateway_start() {
  stop_if_rebuilt gateway
  if part_runs gateway; then return 0; fi
  require_port_free GATEWAY
  require_port_free GATEWAY_ADMIN
  start_part gateway env SLUICE_LISTEN="127.0.0.1:$PORT_GATEWAY" SLUICE_ADMIN_LISTEN="127.0.0.1:$PORT_GATEWAY_ADMIN" \
    "$BIN/sluice-gateway"
}

processor_start() {
  stop_if_rebuilt processor
  if part_runs processor; then return 0; fi
  require_port_free PROCESSOR_ADMIN
  start_part processor env SLUICE_ADMIN_LISTEN="127.0.0.1:$PORT_PROCESSOR_ADMIN" "$BIN/sluice-processor"
}

gateway_wait() { wait_for gateway "$OURS_READY_TIMEOUT_S" http_ok "http://127.0.0.1:$PORT_GATEWAY_ADMIN/health/ready"; }
processor_wait() {
  wait_for processor "$OURS_READY_TIMEOUT_S" http_ok "http://127.0.0.1:$PORT_PROCESSOR_ADMIN/health/ready"
}
