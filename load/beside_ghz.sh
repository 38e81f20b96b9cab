#!/usr/bin/env bash
# Runs ghz and sluice-load at the same time on PublishOne or Decide of a gateway, with the same events at half of the rate each,
# and shows their reports beside each other. At the same time, because in turn each measures also what it costs the machine
# itself, and how the servers' state differs by then. ghz v0.121.0 and sluice-load are looked for in the search path.
set -euo pipefail

(($# == 5)) || {
  echo "usage: $0 publish-one|decide HOST:PORT RATE DURATION DIRECTORY" >&2
  exit 2
}
mode="$1" address="$2" rate="$3" duration="$4" directory="$5"
case "$mode" in
  publish-one) call=sluice.v1.IngestService/PublishOne ;;
  decide) call=sluice.v1.IngestService/Decide ;;
  *) echo "$mode is neither publish-one nor decide" >&2 && exit 2 ;;
esac
readonly CALLS=50 ROUNDS=3
((half = rate / 2))
key="${SLUICE_API_KEY:-sluice-dev-key}"
proto="$(cd "$(dirname "${BASH_SOURCE[0]}")/../proto" && pwd)"
event='{"event":{"event_id":"{{newUUID}}","occurred_at":"{{.Timestamp}}","payment":{"account_id":"account-{{.RequestNumber}}",
  "amount":{"currency_code":"EUR","units":"12"},"merchant_id":"merchant-1"}}}'

for ((round = 1; round <= ROUNDS; round++)); do
  ghz --insecure --proto "$proto/sluice/v1/ingest.proto" --import-paths "$proto" --call "$call" \
    -m "{\"authorization\":\"Bearer $key\"}" -d "$event" -c "$CALLS" -r "$half" -z "$duration" --duration-stop wait \
    -O json -o "$directory/ghz-$round.json" "$address" &
  sluice-load "$mode" --insecure --api-key "$key" -d "$event" -c "$CALLS" -r "$half" -z "$duration" -q \
    -O json -o "$directory/sluice-load-$round.json" "$address" || echo "sluice-load found faults: see its report" >&2
  wait "$!"
  sluice-load compare "$directory/ghz-$round.json" "$directory/sluice-load-$round.json"
done
