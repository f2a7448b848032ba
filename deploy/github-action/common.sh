# shellcheck shell=bash
# shellcheck disable=SC2034 # used by who sources it
# What the steps of the action have in common.

program=/usr/local/bin/tunnelwarden
config=/etc/tunnelwarden/tunnelwarden.toml
state=/var/lib/tunnelwarden
logs=/var/log/tunnelwarden
# What the report reads: its folder's group is the runner's, so it needs no sudo.
record=$logs/attempts.jsonl
# The first line of a configuration that this action wrote.
ours="# Written by the action, for this job."

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo -n -- "$@"
    fi
}

# Says why, where the runner shows errors, and ends the step.
fail() {
    printf '::error::tunnelwarden: %s\n' "$*"
    exit 1
}

# true or false, or it is a mistake worth stopping for.
is_true() {
    case $2 in
    true) return 0 ;;
    false | '') return 1 ;;
    *) fail "$1 is true or false" ;;
    esac
}
