# shellcheck shell=bash
# Owns `./dev test`: the parts that the tests need, from clean data and beside a running demo, and the checks of the
# Docker files. The tests start the gateway and the processor themselves.

use_test_stack() {
  use_home "${SLUICE_HOME:-.sluice}/test"
  use_ports SLUICE_TEST_PORT 29092 29093 25432 28081 28082 25051 29464 29465
  export_test_parts
}

# Where the harness finds the parts.
export_test_parts() {
  export SLUICE_TEST_KAFKA="127.0.0.1:$PORT_KAFKA"
  export SLUICE_TEST_POSTGRES="postgres://postgres@127.0.0.1:$PORT_POSTGRES/postgres"
  export SLUICE_TEST_REGISTRY="http://127.0.0.1:$PORT_REGISTRY/apis/ccompat/v7"
}

missing_for_tests() { need_command kcat kcat; }

# A browser and Docker's own tools are no prerequisites: without them their checks are skipped by name.
missing_for_browser() { need_command chromium chromium; }
missing_for_compose_check() { compose_command >/dev/null || MISSING+=(docker-compose); }

command_test() {
  use_test_stack
  install_for_stack
  install_packages tests
  install_optional browser
  install_optional compose_check
  (($# > 0)) || build_faulty
  say "building (release)"
  cargo build --release --workspace --bins --tests || die "the build failed: see the compiler's message above"
  local code=0
  check_docker_files || code=1
  start_clean
  run_tests "$@" || code=$?
  # What injects faults is only there where faults are injected.
  (($# > 0)) || cargo test --release -p sluice-kafka --features failpoints --lib fail 9>&- || code=1
  # A run of everything breaks the servers too.
  (($# > 0)) || "$BIN/sluice-chaos" --short 9>&- || code=1
  (($# > 0)) || "$BIN/sluice-sim" --trials "$SIM_TEST_TRIALS" || code=1
  (($# > 0)) || "$BIN/sluice-sim" --broken || code=1
  # What a failed test left in the parts may explain it; what passed is of no more use.
  ((code != 0)) || discard_stack
  exit "$code"
}

install_optional() { (install_packages "$1") || warn "going on without it"; }

# start_clean: the three parts without the gateway and the processor, with nothing left of an earlier run. The lock is
# kept until the end, because a second run would begin by stopping these parts.
start_clean() {
  lock_home
  stop_in_order gateway processor registry kafka postgres
  purge_stack
  start_parts
  SLUICE_TEST_KAFKA_PID="$(part_pid kafka)"
  export SLUICE_TEST_KAFKA_PID
}

discard_stack() {
  stop_started
  purge_stack
}

# A package that is named replaces the whole workspace, where cargo would silently ignore it.
run_tests() {
  local scope=(--workspace) argument
  for argument in "$@"; do
    case "$argument" in
      --) break ;;
      -p | -p?* | --package | --package=*) scope=() ;;
    esac
  done
  cargo test --release "${scope[@]}" --no-fail-fast "$@" 9>&-
}

check_docker_files() {
  local code=0 compose=()
  if read -ra compose < <(compose_command); then
    check "${compose[*]} config" "${compose[@]}" --file docker/compose.yaml config --quiet || code=1
  else
    say "skipped: docker-compose config (there is no docker-compose)"
  fi
  if install_checkers; then
    check "hadolint" "$CACHE/checkers/bin/hadolint" --failure-threshold style docker/Dockerfile || code=1
  else
    say "skipped: hadolint (it cannot be installed)"
  fi
  return "$code"
}

# check NAME COMMAND...: one line for a check that passes, its whole output for one that does not.
check() {
  local name="$1" output
  shift
  if output="$("$@" 2>&1)"; then
    say "ok: $name"
  else
    printf '%s\n' "$output" >&2
    warn "failed: $name"
    return 1
  fi
}
