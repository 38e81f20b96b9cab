# shellcheck shell=bash
# Sourced by generate.sh and example.sh: runs Maven, which is heard only when it fails.

for tool in javac mvn; do
  if ! command -v "$tool" >/dev/null; then
    echo "skipped: $tool is not installed"
    exit 77
  fi
done

maven() {
  local output
  if ! output=$(mvn --quiet --batch-mode "$@" 2>&1); then
    echo "$output" >&2
    return 1
  fi
}
