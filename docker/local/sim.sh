# shellcheck shell=bash
# Owns `./dev sim`: trials of the exactly-once protocol over models of Kafka and Postgres. It starts no part.

# Trials of `./dev test`.
readonly SIM_TEST_TRIALS=20000

# The same packages are chosen as in every other build, so that cargo builds nothing anew but what the feature changes.
build_sim() {
  say "building the simulation (release)"
  cargo build --release --workspace --bin sluice-sim --features failpoints ||
    die "the build failed: see the compiler's message above"
}

command_sim() {
  build_sim
  "$BIN/sluice-sim" "$@"
}
