#!/usr/bin/env bash
# Writes a configuration, starts the daemon with its firewall, and waits until it is ready.
# INPUT_INGRESS, INPUT_CONTACT, INPUT_PACKS, INPUT_POLICY_MODE, INPUT_REMOVE_SUDO: see action.yml.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

# A JSON string or list is a TOML one, too, whatever is in it.
text() { jq -cn --arg text "$1" '$text'; }
words() { jq -cn --arg words "$1" '[$words | splits("[\\s,]+") | select(. != "")]'; }

configuration() {
    cat <<TOML
$ours
[organization]
ingress = $(words "${INPUT_INGRESS:-}")
${INPUT_CONTACT:+contact = $(text "$INPUT_CONTACT")}

[listen]
dns = ["127.0.0.1:5300", "[::1]:5300"]
admin = "127.0.0.1:9053"

[policy]
packs = $(words "${INPUT_PACKS:-ngrok ngrok-strict dns-bypass}")
mode = $(text "${INPUT_POLICY_MODE:-enforce}")

[limits]
clients = ["on-link"]

[firewall]
mode = "host"
processes = true

[[audit.sinks]]
kind = "file"
path = $(text "$record")
TOML
}

# The last matching line of sudoers counts, and this file is read last. Membership of the group docker is as good as
# root, and ends for new processes only, so the socket goes as well.
take_root_away() {
    ((EUID != 0)) || fail "remove-sudo: the job itself is root"
    local user=${SUDO_USER:-$(id -un)} rule=/etc/sudoers.d/zzz-tunnelwarden socket
    # In one go: afterwards nothing is left to do it with.
    # shellcheck disable=SC2016 # the inner shell expands
    as_root bash -euc '
        umask 227
        printf "%s ALL=(ALL:ALL) !ALL\n" "$1" >"$2.new"
        visudo -qcf "$2.new"
        for socket in /run/docker.sock /run/podman/podman.sock /run/containerd/containerd.sock; do
            [[ ! -e $socket ]] || chmod 600 "$socket"
        done
        mv "$2.new" "$2"
    ' take-root-away "$user" "$rule"
    # Without its memory of an earlier use.
    sudo -k
    ! sudo -n true 2>/dev/null || fail "remove-sudo: sudo still works"
    for socket in /run/docker.sock /run/podman/podman.sock /run/containerd/containerd.sock; do
        [[ ! -w $socket ]] || fail "remove-sudo: $socket can still be written to"
    done
}

if is_true remove-sudo "${INPUT_REMOVE_SUDO:-}"; then remove_sudo=1; else remove_sudo=; fi
if [[ -e $config ]] && ! head -n 1 "$config" | grep -qxF "$ours"; then
    fail "$config is not of this action: this machine has a tunnelwarden of its own, which need not be started"
fi

if "$program" healthcheck --config "$config" --state-dir "$state" >/dev/null 2>&1; then
    fail "it runs already"
fi

as_root install -d -m 755 "${config%/*}"
# The runner may read its record, and write none.
as_root install -d -m 2750 -o tunnelwarden -g "$(id -g)" "$logs"
configuration | as_root tee "$config" >/dev/null
"$program" check --config "$config" || fail "the inputs give no configuration"

# Apart from this step, and without what the runner knows its job's processes by: it goes on until the machine does.
# shellcheck disable=SC2016 # the inner shell expands
as_root env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    setsid sh -c 'exec "$@" </dev/null >>/var/log/tunnelwarden.log 2>&1 &' start \
    "$program" serve --config "$config" --state-dir "$state"

for _ in {1..300}; do
    if "$program" healthcheck --config "$config" --state-dir "$state" >/dev/null 2>&1; then
        "$program" healthcheck --config "$config" --state-dir "$state"
        [[ -z $remove_sudo ]] || take_root_away
        exit 0
    fi
    sleep 0.1
done
as_root cat /var/log/tunnelwarden.log
fail "it did not become ready"
