# shellcheck shell=bash
# Owns `./dev chaos`: parts of its own, from clean data, and servers into which faults can be injected, for sluice-chaos to
# break.

use_chaos_stack() {
  use_home "${SLUICE_HOME:-.sluice/chaos}"
  use_ports SLUICE_CHAOS_PORT 26092 26093 26432 26081 26082 26051 26464 26465
  export_test_parts
}

# The servers with fault injection are moved aside, so that nobody takes them for the others, whose names they have. The
# same packages are chosen as in every other build, so that cargo builds nothing anew but what the feature changes.
build_faulty() {
  say "building the servers with fault injection (release)"
  cargo build --release --workspace --bin sluice-gateway --bin sluice-processor --bin sluice-chaos \
    --bin sluice-rail --bin sluice-sim --bin sluicectl --features failpoints ||
    die "the build failed: see the compiler's message above"
  # Those of the last time may be the same files under another name.
  rm -rf "$BIN/failpoints"
  mkdir "$BIN/failpoints"
  mv "$BIN/sluice-gateway" "$BIN/sluice-processor" "$BIN/failpoints"
}

command_chaos() {
  use_chaos_stack
  install_for_stack
  build_faulty
  start_clean
  # From the caller's directory, because a path given with --json is meant from there.
  local code=0
  (cd "$CALLER" && "$BIN/sluice-chaos" "$@" 9>&-) || code=$?
  # What a failed trial left in the parts may explain it; what passed is of no more use.
  ((code != 0)) || discard_stack
  exit "$code"
}
