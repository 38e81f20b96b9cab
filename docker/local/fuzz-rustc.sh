#!/bin/sh
# Cargo's wrapper around the compiler for the crates of this workspace, in `./dev fuzz`: the counters and comparisons that
# libFuzzer is led by, as cargo-fuzz asks for them. Dependencies are those of every other build. Build scripts run without
# libFuzzer, and so without counters.
for argument in "$@"; do
  case "$argument" in
    build_script_build) exec "$@" ;;
  esac
done
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Coverflow-checks=on -Cdebug-assertions=on
