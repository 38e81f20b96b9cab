# shellcheck shell=bash
# Owns `./dev demo`: everything up, payments published, their decisions shown. The publisher, sluice-load, prints the
# progress and the table and judges the result; this file starts it and stops what was started for it.

readonly DEMO_EVENTS=10000
readonly DEMO_RATE_PER_S=1000
# The key that the gateway accepts on loopback as long as it is given no keys file.
readonly DEMO_API_KEY=sluice-dev-key

# Fills ONCE, DEMO_FILE and DEMO_ARGS. A file is published whole unless --events says otherwise.
parse_demo() {
  local events="" rate="$DEMO_RATE_PER_S"
  ONCE="" DEMO_FILE=""
  while (($#)); do
    case "$1" in
      --once) ONCE=yes ;;
      --events | --rate | --file)
        (($# > 1)) || die "$1 needs a value"
        case "$1" in
          --events) events="$(positive "$1" "$2")" ;;
          --rate) rate="$(positive "$1" "$2")" ;;
          --file) DEMO_FILE="$(existing_file "$2")" ;;
        esac
        shift
        ;;
      *) die "demo does not know $1: see ./dev help" ;;
    esac
    shift
  done
  DEMO_ARGS=(--rate "$rate")
  if [[ -z $DEMO_FILE ]]; then events="${events:-$DEMO_EVENTS}"; fi
  if [[ -n $events ]]; then DEMO_ARGS+=(--events "$events"); fi
}

positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 needs a positive whole number: $2"
  printf '%s\n' "$2"
}

# A path is meant as seen from where the script was called.
existing_file() {
  local path
  path="$(cd "$CALLER" && readlink -f "$1")"
  [[ -f $path && -r $path ]] || die "cannot read the file $1"
  printf '%s\n' "$path"
}

command_demo() {
  parse_demo "$@"
  on_debian || exec_compose_demo
  install_for_stack
  build_binaries
  start_stack
  if [[ -n $DEMO_FILE ]]; then DEMO_ARGS+=(--file "$DEMO_FILE"); fi
  local code=0
  "$BIN/sluice-load" demo --target "http://127.0.0.1:$PORT_GATEWAY" --api-key "$DEMO_API_KEY" "${DEMO_ARGS[@]}" ||
    code=$?
  if [[ -n $ONCE ]]; then exit "$code"; fi
  ((code == 0)) || warn "the publisher ended with code $code"
  print_invitation
  stay_up
}

print_invitation() {
  cat <<INVITATION

everything stays up until Ctrl-C:
$(print_addresses)

look at the services:  grpcurl -plaintext -H 'authorization: Bearer $DEMO_API_KEY' 127.0.0.1:$PORT_GATEWAY list
point a client at 127.0.0.1:$PORT_GATEWAY (plain text) with the header "authorization: Bearer $DEMO_API_KEY"; examples are
in clients/
INVITATION
}

# Waits for a signal. A part that ends meanwhile is said, with the end of its log; one that `./dev down` stopped has no
# pid file any more, and then there is nothing left to stay up for.
stay_up() {
  local name
  while :; do
    for name in kafka postgres registry gateway processor; do
      [[ -f "$RUN/$name.pid" ]] || die "$name was stopped by another command: ending the demo"
      part_runs "$name" || part_failed "$name" "ended"
    done
    # In the background, so that a signal need not wait for the sleep to end.
    sleep 1 &
    wait $!
  done
}
