# shellcheck shell=bash
# Sourced by generate.sh and example.sh: makes node_modules hold exactly what package-lock.json locks.

supported='process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'
if ! command -v npm >/dev/null || ! node -e "$supported" 2>/dev/null; then
  echo "skipped: Node.js 20 with npm is not installed"
  exit 77
fi

# The copy of the lock file says what was installed, and is written last, so that a broken install is repeated.
if ! cmp -s package-lock.json node_modules/.installed-lock.json; then
  npm ci --loglevel=error --no-audit --no-fund >/dev/null
  cp package-lock.json node_modules/.installed-lock.json
fi
