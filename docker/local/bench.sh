# shellcheck shell=bash
# Owns `./dev bench`: parts of its own, from clean data, for sluice-load to measure on.

use_bench_stack() {
  use_home "${SLUICE_HOME:-.sluice}/bench"
  use_ports SLUICE_BENCH_PORT 27092 27093 27432 27081 27082 27051 27464 27465
  export_environment
}

# The loader knows what it can measure: without a name, or with one that it does not know, it lists them.
command_bench() {
  use_bench_stack
  local name="${1:-}"
  # These run the processor's code in the loader's process, and need none of the parts.
  if [[ $name == detection || $name == state ]]; then
    build_binaries
    cd "$CALLER"
    exec "$BIN/sluice-load" bench "$@" 9>&-
  fi
  install_for_stack
  build_binaries
  if [[ -z $name || $name == -* ]] || ! "$BIN/sluice-load" bench "$name" --help >/dev/null 2>&1; then
    "$BIN/sluice-load" bench --help >&2 || true
    die "bench needs the name of one of the benchmarks above"
  fi
  start_clean
  apply_topics
  # From the caller's directory, because a path given with --json is meant from there.
  local code=0
  (cd "$CALLER" && "$BIN/sluice-load" bench "$@" 9>&-) || code=$?
  # Millions of records are not kept.
  discard_stack
  exit "$code"
}
