# shellcheck shell=bash
# Owns the paths, the ports, the messages and the bookkeeping of local processes: how one is started, recognised as
# ours, waited for and stopped. The files kafka.sh, postgres.sh, registry.sh and sluice.sh say what is started.

# Set by `dev` before it sources this file: ROOT, the repository's root.
CACHE="$ROOT/.sluice/cache"
LOCAL="$ROOT/docker/local"
BIN="$(realpath -m "${CARGO_TARGET_DIR:-target}")/release"

readonly STOP_TIMEOUT_S=30
readonly POLL_S=0.1
readonly LOG_TAIL_LINES=20

# The parts that this run of the script started, and which it must stop again if it fails.
STARTED=()

say() { printf '%s\n' "$*"; }
warn() { printf 'dev: %s\n' "$*" >&2; }
die() {
  warn "$*"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [[ $EUID -eq 0 ]]; }
short_hash() { printf '%s' "$1" | cksum | cut -d' ' -f1; }

# Runs a noisy step with its output in the named log, and shows the log's end only when the step fails.
quietly() {
  local log="$LOG/$1.log" what="$2"
  shift 2
  if ! ("$@") >"$log" 2>&1 </dev/null; then
    tail -n "$LOG_TAIL_LINES" "$log" >&2
    die "$what failed: the whole log is $log"
  fi
}

# ---- where things are ------------------------------------------------------------------------------------------

# use_home DIR: data, logs and pids go below DIR; the cache is always the repository's.
use_home() {
  local home="$1"
  [[ $home == /* ]] || home="$ROOT/$home"
  DATA="$home/data" LOG="$home/log" RUN="$home/run"
  HOME_ID="sluice-$EUID-$(short_hash "$home")"
  mkdir -p "$CACHE" "$DATA" "$LOG" "$RUN" || die "cannot write $home: check its owner and the free space"
}

# use_ports PREFIX KAFKA CONTROLLER POSTGRES REGISTRY REGISTRY_ADMIN GATEWAY GATEWAY_ADMIN PROCESSOR_ADMIN: the default
# ports of this stack; the environment variables PREFIX_KAFKA and so on override them. The demo's, the tests' and the
# benchmarks' stacks have a prefix and defaults each, so that they run side by side.
use_ports() {
  PORT_PREFIX="$1"
  port_from KAFKA "$2" && port_from KAFKA_CONTROLLER "$3" && port_from POSTGRES "$4"
  port_from REGISTRY "$5" && port_from REGISTRY_ADMIN "$6"
  port_from GATEWAY "$7" && port_from GATEWAY_ADMIN "$8" && port_from PROCESSOR_ADMIN "$9"
}

port_from() {
  local variable="${PORT_PREFIX}_$1"
  local port="${!variable:-$2}"
  if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then die "$variable is not a port: $port"; fi
  printf -v "PORT_$1" '%s' "$port"
}

# The environment that every binary of ours reads; the flags of a binary override it.
export_environment() {
  export SLUICE_KAFKA="127.0.0.1:$PORT_KAFKA"
  export SLUICE_REGISTRY="http://127.0.0.1:$PORT_REGISTRY/apis/ccompat/v7"
  export SLUICE_POSTGRES="postgres://sluice@127.0.0.1:$PORT_POSTGRES/sluice"
  export SLUICE_TOPIC_PREFIX="${SLUICE_TOPIC_PREFIX:-}"
  export SLUICE_LOG="${SLUICE_LOG:-info}"
}

# One command at a time may start or stop a stack. What runs on is started without the lock's descriptor, or it would
# hold the lock for as long as it lives.
lock_home() {
  exec 9>"$RUN/lock"
  flock -n 9 || die "another ./dev is at work on the parts in ${RUN%/run}: wait for it"
}
unlock_home() { exec 9>&-; }

# ---- ports -----------------------------------------------------------------------------------------------------

# listener_inode PORT: the inode of a socket that listens on the port, from the kernel's own table, so that neither ss
# nor lsof has to be installed.
listener_inode() {
  local hex
  printf -v hex '%04X' "$1"
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
    awk -v hex="$hex" '$4 == "0A" && $2 ~ ":" hex "$" { inode = $10 } END { print inode }'
}

# require_port_free NAME: dies, naming the holder, when PORT_NAME is taken.
require_port_free() {
  local variable="PORT_$1" inode holder command
  local port="${!variable}"
  inode="$(listener_inode "$port")"
  [[ -n $inode ]] || return 0
  holder="$(find /proc/[0-9]*/fd -maxdepth 1 -lname "socket:\[$inode\]" -print -quit 2>/dev/null | cut -d/ -f3 || true)"
  if [[ -n $holder ]]; then
    command="$(tr '\0' ' ' <"/proc/$holder/cmdline" 2>/dev/null | cut -c1-60 || true)"
    die "port $port is in use by pid $holder (${command% }): stop it or set ${PORT_PREFIX}_$1"
  fi
  die "port $port is in use by another user's process: stop it or set ${PORT_PREFIX}_$1"
}

# ---- processes -------------------------------------------------------------------------------------------------

# identity PID: what tells this process from a later one with the same pid: the boot and the start time. Fails when
# there is no such process or only its zombie.
identity() {
  local stat fields
  stat="$(cat "/proc/$1/stat" 2>/dev/null)" || return 1
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} != Z ]] || return 1
  printf '%s %s\n' "$(</proc/sys/kernel/random/boot_id)" "${fields[19]}"
}

# part_pid NAME: prints the pid when the recorded process still runs and is the one that was recorded.
part_pid() {
  local pid recorded
  read -r pid recorded 2>/dev/null <"$RUN/$1.pid" || return 1
  [[ "$(identity "$pid")" == "$recorded" ]] || return 1
  printf '%s\n' "$pid"
}

part_runs() { part_pid "$1" >/dev/null; }

# start_part NAME COMMAND...: starts a process in a session of its own, so that a Ctrl-C in the terminal reaches this
# script alone, which then stops the parts in order. Keeps the log of the run before.
start_part() {
  local name="$1" pid
  shift
  [[ ! -f "$LOG/$name.log" ]] || mv -f "$LOG/$name.log" "$LOG/$name.log.1"
  setsid "$@" >"$LOG/$name.log" 2>&1 </dev/null 9>&- &
  pid=$!
  STARTED+=("$name")
  printf '%s %s\n' "$pid" "$(identity "$pid" || echo gone)" >"$RUN/$name.pid"
}

# wait_for NAME SECONDS CHECK...: polls until the check succeeds; dies with the log's end when the process is gone or
# the time is up.
wait_for() {
  local name="$1" deadline=$((SECONDS + $2)) limit_s="$2"
  shift 2
  # In a subshell, so that a signal's trap does not inherit the redirection and stop everything unheard.
  until ("$@") >/dev/null 2>&1; do
    if ! part_runs "$name"; then
      part_failed "$name" "stopped while it was starting"
    fi
    ((SECONDS < deadline)) || part_failed "$name" "was not ready after $limit_s s"
    sleep "$POLL_S"
  done
}

part_failed() {
  tail -n "$LOG_TAIL_LINES" "$LOG/$1.log" >&2 || true
  die "$1 $2: the whole log is $LOG/$1.log"
}

http_ok() { curl --silent --fail --max-time 2 --noproxy '*' --output /dev/null "$1"; }

# stop_parts SIGNAL NAME...: signals every named part that runs, then waits for all of them together. A part that does
# not end in time is killed, which is said, because it means that something was not drained.
stop_parts() {
  local signal="$1" name pid deadline=$((SECONDS + STOP_TIMEOUT_S))
  shift
  for name in "$@"; do
    if pid="$(part_pid "$name")"; then kill -s "$signal" "$pid" 2>/dev/null || true; fi
  done
  for name in "$@"; do
    while part_runs "$name" && ((SECONDS < deadline)); do sleep "$POLL_S"; done
    if pid="$(part_pid "$name")"; then
      warn "$name did not stop within $STOP_TIMEOUT_S s of SIG$signal: killing it (log: $LOG/$name.log)"
      kill -s KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$RUN/$name.pid"
  done
}
