#!/usr/bin/env bash
# Writes what was refused into the job's summary, and whether the daemon is still there.
# INPUT_CONTACT, INPUT_FAIL_ON_ATTEMPT: see action.yml.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

rows=100 # of the table
summary=${GITHUB_STEP_SUMMARY:?}

# Whatever is not plainly harmless becomes a character reference: no name can end a cell, a line or be markup.
# shellcheck disable=SC2016 # jq's variables
shown='def shown: tostring | explode
    | map(if (. >= 48 and . <= 57) or (. >= 65 and . <= 90) or (. >= 97 and . <= 122) or . == 45 or . == 46 or . == 32
          then [.] | implode else "&#\(.);" end)
    | join("");'

# The record as one list: of every attempt the last line, which has its count. A question that was meant for another
# resolver and turned to us is none of them: where its name was refused, that is one by itself.
attempts() {
    jq -cnR '[reduce (inputs | fromjson?) as $one ({}; .[$one.id | tostring] = $one) | .[]
        | select(.decision == "blocked" or .decision == "observed") | select(.way != "dns-redirected")]
        | sort_by(.first // .time)' "$record"
}

table() {
    jq -r --argjson rows "$rows" "$shown"'
        "| first seen (UTC) | decision | way | what | rule | process | times |",
        "|---|---|---|---|---|---|---|",
        (.[:$rows][] | [(.first // .time), .decision, .way, (.question.name // .destination // ""),
            .rule, (.process.exe // (if .process.uid then "uid \(.process.uid)" else "" end)), .count]
            | "| " + (map(shown) | join(" | ")) + " |"),
        (if length > $rows then "", "\(length - $rows) more are not shown." else empty end)'
}

if is_true fail-on-attempt "${INPUT_FAIL_ON_ATTEMPT:-}"; then must_fail=1; else must_fail=; fi
printf '## tunnelwarden\n\n' >>"$summary"
if [[ ! -r $record && ! -d $logs ]]; then
    printf 'It was not started, so nothing was refused and nothing is known.\n' >>"$summary"
    fail "it was not started"
fi

found='[]'
[[ ! -e $record ]] || found=$(attempts)
count=$(jq length <<<"$found")
printf 'attempts=%s\n' "$count" >>"${GITHUB_OUTPUT:-/dev/null}"
if ((count)); then
    table <<<"$found" >>"$summary"
    [[ -z ${INPUT_CONTACT:-} ]] ||
        jq -rn --arg contact "$INPUT_CONTACT" "$shown"'"\nAsk \($contact | shown) if this should pass."' >>"$summary"
    printf '::warning::tunnelwarden: %s attempts, see the summary of the job\n' "$count"
else
    printf 'Nothing was refused.\n' >>"$summary"
fi

if ! health=$("$program" healthcheck --config "$config" --state-dir "$state" 2>&1); then
    printf '\nIt is not ready any more: what came later is not in here.\n' >>"$summary"
    printf '%s\n' "$health"
    fail "it is not ready any more"
fi
if ((count)) && [[ -n $must_fail ]]; then
    fail "$count attempts"
fi
