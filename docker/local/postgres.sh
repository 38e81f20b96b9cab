# shellcheck shell=bash
# Owns the local Postgres: its cluster, its user, and the databases `sluice` (the ledger) and `registry` (the schemas).
# It never touches a cluster of the system. fsync stays on: what is measured here is what a real ledger costs.

readonly POSTGRES_READY_TIMEOUT_S=30
readonly POSTGRES_GONE_TIMEOUT_S=10
# The kernel's limit of a unix socket's path, less the terminating zero.
readonly SOCKET_PATH_MAX_BYTES=107

# Postgres refuses to run as root, so root runs it as the user that Debian's package makes. AS_POSTGRES is the prefix of
# every command that must run as that user; it is empty for anybody but root.
AS_POSTGRES=()
if is_root; then AS_POSTGRES=(setpriv --reuid=postgres --regid=postgres --clear-groups --); fi

# own_for_postgres DIR: makes the directory, and fails when the server's user cannot reach it.
own_for_postgres() {
  mkdir -p "$1"
  if is_root; then chown postgres "$1"; fi
  chmod 700 "$1"
  "${AS_POSTGRES[@]}" test -w "$1" -a -x "$1"
}

# Below $DATA when the server's user may go there, else (a clone in root's home) in the system's place for data that
# outlives a restart.
postgres_place() {
  POSTGRES_HOME="$DATA/postgres"
  if ! own_for_postgres "$POSTGRES_HOME" 2>/dev/null; then
    rmdir "$POSTGRES_HOME" 2>/dev/null || true
    POSTGRES_HOME="/var/tmp/$HOME_ID/postgres"
    mkdir -p "${POSTGRES_HOME%/*}"
    own_for_postgres "$POSTGRES_HOME" ||
      die "user postgres can reach neither $DATA nor $POSTGRES_HOME: give it search permission on the way"
  fi
  POSTGRES_SOCKETS="$POSTGRES_HOME"
  local socket="$POSTGRES_SOCKETS/.s.PGSQL.$PORT_POSTGRES"
  if ((${#socket} > SOCKET_PATH_MAX_BYTES)); then
    POSTGRES_SOCKETS="/tmp/$HOME_ID"
    own_for_postgres "$POSTGRES_SOCKETS" || die "user postgres cannot use $POSTGRES_SOCKETS: remove it"
  fi
}

# The newest installed server, or the one that the existing data belongs to.
postgres_bin() {
  local wanted="*" found
  if [[ -f "$POSTGRES_HOME/main/PG_VERSION" ]]; then wanted="$(<"$POSTGRES_HOME/main/PG_VERSION")"; fi
  found="$(find /usr/lib/postgresql -path "/usr/lib/postgresql/$wanted/bin/postgres" 2>/dev/null | sort -V | tail -n 1)"
  [[ -n $found ]] || die "no Postgres server of version $wanted is installed: install it or run ./dev down --purge"
  POSTGRES_BIN="${found%/postgres}"
}

postgres_initialise() {
  [[ ! -d "$POSTGRES_HOME/main" ]] || return 0
  rm -rf "$POSTGRES_HOME/main.new"
  # Trust is safe enough for a server that listens on loopback only and holds generated data.
  quietly postgres-init "initialising Postgres" "${AS_POSTGRES[@]}" "$POSTGRES_BIN/initdb" --pgdata="$POSTGRES_HOME/main.new" \
    --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-instructions
  mv "$POSTGRES_HOME/main.new" "$POSTGRES_HOME/main"
}

postgres_psql() {
  "$POSTGRES_BIN/psql" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
    "host=127.0.0.1 port=$PORT_POSTGRES user=postgres dbname=postgres connect_timeout=2"
}

# A server that was killed leaves its lock file behind. Postgres takes that for a running server for as long as nobody
# has reaped the process, which init may do seconds later.
postgres_await_reaping() {
  local pid deadline=$((SECONDS + POSTGRES_GONE_TIMEOUT_S))
  read -r pid 2>/dev/null <"$POSTGRES_HOME/main/postmaster.pid" || return 0
  while [[ -d /proc/$pid ]] && ! identity "$pid" >/dev/null && ((SECONDS < deadline)); do sleep "$POLL_S"; done
}

postgres_start() {
  postgres_place
  postgres_bin
  if part_runs postgres; then return 0; fi
  require_port_free POSTGRES
  postgres_initialise
  postgres_await_reaping
  # The server's user may not be allowed into the repository, which would be its working directory.
  cd "$POSTGRES_HOME" || die "cannot enter $POSTGRES_HOME"
  start_part postgres "${AS_POSTGRES[@]}" "$POSTGRES_BIN/postgres" -D "$POSTGRES_HOME/main" \
    -c listen_addresses=127.0.0.1 -c port="$PORT_POSTGRES" -c unix_socket_directories="$POSTGRES_SOCKETS" \
    -c max_connections=100 -c shared_buffers=256MB -c max_wal_size=2GB -c log_line_prefix='%m [%p] %u@%d '
  cd "$ROOT" || die "cannot enter $ROOT"
}

postgres_accepts() { "$POSTGRES_BIN/pg_isready" --quiet --host=127.0.0.1 --port="$PORT_POSTGRES"; }

postgres_wait() {
  wait_for postgres "$POSTGRES_READY_TIMEOUT_S" postgres_accepts
  postgres_databases || part_failed postgres "did not create its databases"
}

# CREATE DATABASE cannot be conditional, so the statements are made by a query and then run.
postgres_databases() {
  postgres_psql >/dev/null <<'SQL'
SELECT 'CREATE ROLE sluice LOGIN CREATEDB' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sluice') \gexec
SELECT format('CREATE DATABASE %I OWNER sluice', name) FROM unnest(ARRAY['sluice', 'registry']) AS name
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
SQL
}

postgres_purge() { rm -rf "${DATA:?}/postgres" "/var/tmp/${HOME_ID:?}" "/tmp/${HOME_ID:?}"; }
