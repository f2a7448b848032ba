#!/usr/bin/env bash
# What the README promises, seen with the binary that would be shipped and with dig, as a newcomer would.
# usage: tests/acceptance.sh BINARY
set -euo pipefail

binary=$(realpath "${1:?usage: tests/acceptance.sh BINARY}")
state=$(mktemp -d)
export STATE_DIRECTORY=$state NO_COLOR=1
passed=0

cleanup() {
    [[ -n ${daemon:-} ]] && kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null
    rm -rf "$state"
}
trap cleanup EXIT

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    sed 's/^/  daemon: /' "$state/log" >&2
    exit 1
}

# holds WHAT COMMAND..: the command succeeds.
holds() {
    local what=$1
    shift
    "$@" >/dev/null || fail "$what"
    passed=$((passed + 1))
}

says() { # says WORDS COMMAND..: what the command prints contains WORDS
    local words=$1
    shift
    grep -qF -- "$words" <("$@" 2>&1 || true)
}

ask() { dig @127.0.0.1 -p 5300 +tries=1 +time=5 "$@"; }

"$binary" serve >"$state/log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    grep -q '^  record' "$state/log" && break
    kill -0 "$daemon" 2>/dev/null || fail "the daemon ended"
    sleep 0.1
done
holds "it says how to try it" grep -q 'dig @127.0.0.1 -p 5300' "$state/log"

blocked=connect.eu.ngrok-agent.com
for way in "A" "AAAA" "HTTPS" "TXT" "ANY" "-c CH TXT" "+norec A" "+tcp A" "+noedns A" "+dnssec A" "+cd A"; do
    # shellcheck disable=SC2086 # a way is several words
    holds "refused: $way" says 'status: NXDOMAIN' ask $blocked $way
done
holds "refused in any case" says 'status: NXDOMAIN' ask CoNNect.eu.NGROK-agent.com
holds "over IPv6" says 'status: NXDOMAIN' dig @::1 -p 5300 +tries=1 +time=5 $blocked
holds "an SOA" says 'SOA' ask $blocked
holds "the extended error names the rule" says 'EDE: 15 (Blocked): (ngrok/connect' ask $blocked
holds "several refusals are one line with a count" says "$blocked" "$binary" attempts
holds "and as JSON" says '"rule":"ngrok/connect"' "$binary" attempts --json

for name in crl.ngrok-agent.com tunnel.us.ngrok.com.example.org notngrok-agent.com; do
    holds "$name passes" "$binary" explain $name
done
holds "explain names rule and file" says 'built-in/ngrok.toml' "$binary" explain $blocked
set +e
"$binary" explain $blocked >/dev/null
[[ $? -eq 4 ]] || fail "explain of a refused name exits 4"
"$binary" check --config /nonexistent 2>/dev/null
[[ $? -eq 3 ]] || fail "a missing configuration exits 3"
set -e
holds "the built-in defaults are sound" "$binary" check
holds "reload reports" says 'loaded' "$binary" reload

kill -TERM "$daemon"
wait "$daemon" || fail "a stop exits 0"
daemon=
printf 'acceptance: %d passed\n' "$passed"
