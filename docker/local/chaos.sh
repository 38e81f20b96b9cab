# shellcheck shell=bash
# Owns `./dev chaos` and `./dev soak`: parts of their own, from clean data, and servers into which faults can be injected, for
# sluice-chaos and sluice-soak to break.

use_chaos_stack() {
  use_home "${SLUICE_HOME:-.sluice}/chaos"
  use_ports SLUICE_CHAOS_PORT 26092 26093 26432 26081 26082 26051 26464 26465
  export_test_parts
}

# The servers with fault injection are moved aside, so that nobody takes them for the others, whose names they have. The
# same packages are chosen as in every other build, so that cargo builds nothing anew but what the feature changes.
build_faulty() {
  say "building the servers with fault injection (release)"
  cargo build --release --workspace --bin sluice-gateway --bin sluice-processor --bin sluice-chaos \
    --bin sluice-soak --bin sluice-rail --bin sluice-sim --bin sluicectl --features failpoints ||
    die "the build failed: see the compiler's message above"
  # Those of the last time may be the same files under another name.
  rm -rf "$BIN/failpoints"
  mkdir "$BIN/failpoints"
  mv "$BIN/sluice-gateway" "$BIN/sluice-processor" "$BIN/failpoints"
  cc -std=c17 -O2 -Wall -Wextra -Werror -shared -fPIC -o "$BIN/failpoints/stepped-clock.so" \
    "$ROOT/tests/src/chaos/stepped_clock.c" || die "the servers' clock cannot be built: see the compiler's message above"
}

# wants NAME ARG...: whether these arguments ask for the scenario.
wants() {
  local name="$1"
  shift
  [[ " $* " == *" --scenario $name "* || " $* " == *" --scenario=$name "* ]]
}

command_chaos() {
  use_chaos_stack
  local lacks=""
  if wants full-disk "$@" && ! is_root; then lacks="it needs root, to make small disks"; fi
  if wants cluster "$@"; then
    if is_root; then install_packages cluster; fi
    lacks="$(cluster_lacks)"
  fi
  if [[ -n $lacks ]]; then
    say "skipped: $* ($lacks)"
    return 0
  fi
  break_parts sluice-chaos "$@"
}

command_soak() {
  use_chaos_stack
  break_parts sluice-soak "$@"
}

# break_parts BINARY ARG...
break_parts() {
  local binary="$1" code=0
  shift
  install_for_stack
  build_faulty
  start_clean
  if wants cluster "$@"; then cluster_up; fi
  # From the caller's directory, because a path given with --json is meant from there.
  (cd "$CALLER" && "$BIN/$binary" "$@" 9>&-) || code=$?
  # What a failed trial left in the parts may explain it; what passed is of no more use.
  ((code != 0)) || discard_stack
  exit "$code"
}
