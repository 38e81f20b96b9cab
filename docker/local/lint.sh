# shellcheck shell=bash
# Owns `./dev lint`: every check of the source that needs no running part. All of them run, so that one run shows
# everything there is to mend.

readonly MACHETE_VERSION=0.9.2
readonly ADVISORIES_TIMEOUT_S=60

command_lint() {
  (($# == 0)) || die "lint takes no argument: $1"
  use_home "${SLUICE_HOME:-.sluice}"
  if on_debian; then install_packages build python; fi
  require_rust
  install_checkers
  install_machete
  FAILED=()
  lint_rust
  lint_rest
  if ((${#FAILED[@]})); then die "failed: ${FAILED[*]}"; fi
  say "every check passed"
}

install_machete() {
  [[ -x "$CACHE/machete-$MACHETE_VERSION/bin/cargo-machete" ]] && return 0
  say "building cargo-machete $MACHETE_VERSION (once)"
  quietly machete "building cargo-machete" \
    cargo install --locked --root "$CACHE/machete-$MACHETE_VERSION" "cargo-machete@$MACHETE_VERSION"
}

# lint NAME COMMAND...
lint() {
  local name="$1"
  shift
  say "== $name"
  "$@" || FAILED+=("$name")
}

# In release like every other build, because librdkafka takes minutes to compile a second time.
lint_rust() {
  lint fmt cargo fmt --all --check
  lint clippy cargo clippy --release --workspace --all-targets -- -D warnings
  lint "clippy (fault injection)" cargo clippy --release --workspace --all-targets --features failpoints -- -D warnings
  lint doc env RUSTDOCFLAGS="-Dwarnings -Arustdoc::private-intra-doc-links" cargo doc --quiet --release --no-deps --workspace
  lint machete "$CACHE/machete-$MACHETE_VERSION/bin/cargo-machete" "$ROOT"
  lint deny "$CACHE/checkers/bin/cargo-deny" --log-level warn check --hide-inclusion-graph bans licenses sources
  lint_advisories
}

# The advisories are another repository, which is not to be reached from everywhere.
lint_advisories() {
  local deny="$CACHE/checkers/bin/cargo-deny"
  if timeout "$ADVISORIES_TIMEOUT_S" "$deny" fetch db >"$LOG/advisories.log" 2>&1; then
    lint advisories "$deny" --log-level warn check advisories
  else
    say "skipped: advisories (their database cannot be reached)"
  fi
}

lint_rest() {
  lint buf "$CACHE/checkers/bin/buf" lint proto
  lint typos "$CACHE/checkers/bin/typos" --config typos.toml
  lint shellcheck lint_scripts
  lint hadolint "$CACHE/checkers/bin/hadolint" --failure-threshold style docker/Dockerfile
}

# Every tracked script that a shell runs. The parts of `dev` are checked as parts of it, since they share variables.
lint_scripts() {
  local scripts=()
  mapfile -t scripts < <(git grep --files-with-matches -I --extended-regexp '^#!.*[/ ](bash|sh)$')
  "$CACHE/checkers/bin/shellcheck" --external-sources --check-sourced "${scripts[@]}"
}
