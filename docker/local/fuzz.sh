# shellcheck shell=bash
# Owns `./dev fuzz`: the fuzz targets of gateway/fuzz with libFuzzer, which needs neither a nightly compiler nor a running
# part. Inputs that were worth keeping stay below .sluice/data/fuzz, and the next run begins with them.

readonly FUZZ_TARGETS=(events session)
readonly FUZZ_INPUT_BYTES=4096 FUZZ_INPUT_TIMEOUT_S=30

# command_fuzz [SECONDS [TARGET]]: each target for so long, 600 s unless told.
command_fuzz() {
  local seconds="${1:-600}" targets=("${FUZZ_TARGETS[@]}") target corpus code=0
  (($# <= 2)) && [[ $seconds =~ ^[0-9]+$ ]] || die "usage: ./dev fuzz [SECONDS [TARGET]]"
  if (($# == 2)); then targets=("$2"); fi
  [[ " ${FUZZ_TARGETS[*]} " == *" ${targets[0]} "* ]] || die "the targets are: ${FUZZ_TARGETS[*]}"
  use_home "${SLUICE_HOME:-.sluice}"
  if on_debian; then install_packages build; fi
  require_rust
  say "building the fuzz targets (release, instrumented)"
  RUSTC_WORKSPACE_WRAPPER="$LOCAL/fuzz-rustc.sh" cargo build --release -p sluice-gateway-fuzz --features fuzz \
    || die "the build failed: see the compiler's message above"
  for target in "${targets[@]}"; do
    corpus="$DATA/fuzz/$target"
    mkdir -p "$corpus"
    say "fuzzing $target for $seconds s"
    "$BIN/fuzz-$target" -max_total_time="$seconds" -max_len="$FUZZ_INPUT_BYTES" -timeout="$FUZZ_INPUT_TIMEOUT_S" \
      -print_final_stats=1 -artifact_prefix="$corpus-" "$corpus" || code=1
  done
  ((code == 0)) || die "a finding: the input is below .sluice/data/fuzz; give it to the target's program to see it again"
}
