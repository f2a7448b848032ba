#!/usr/bin/env bash
# The Debian package in a clean Debian, with its own systemd as the first process: installed by the commands of
# docs/operating.md, asked, reloaded, hung, given a firewall, upgraded, rolled back, removed, purged. As root; the network
# is one of its own, without a way out.
# usage: tests/package.sh [PACKAGE]; builds one where none is named.
set -euo pipefail

[[ $EUID -eq 0 ]] || { echo "this takes root" >&2; exit 1; }

# -- the second life of this script: the first process of the clean Debian, in namespaces of its own

if [[ ${1:-} == --boot ]]; then
    root=$2
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    # A way for questions to strangers, so that there is something to turn.
    ip link set lo up
    ip link add eth0 type veth peer name far
    ip address add 192.0.2.2/24 dev eth0
    ip link set eth0 up
    ip link set far up
    ip route add default via 192.0.2.1
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd
fi

# -- the test

package=${1:-}
cd "$(dirname "$0")/.."
[[ -n $package ]] || package=$(deploy/debian/build)
package=$(realpath "$package")
work=$(mktemp -d)
root=$work/root
passed=0

cleanup() {
    if [[ -n ${init:-} ]]; then
        # All of its namespace ends with it.
        kill -KILL "$init" 2>/dev/null || true
        wait "$outer" 2>/dev/null || true
    fi
    if mountpoint -q "$work/cgroup"; then
        for _ in $(seq 50); do
            find "$work/cgroup/$(basename "$work")" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done
        umount "$work/cgroup" || true
    fi
    if mountpoint -q "$root"; then umount "$root"; fi
    rm -rf "$work"
}
trap cleanup EXIT

inside() { nsenter --target "$init" --all --root --wd -- "$@"; }
# Debian's minimal system has no dig; questions come from the same network.
ask() { nsenter --target "$init" --net -- dig +tries=1 +time=5 "$@"; }

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    inside journalctl --no-pager -n 40 -o cat -u 'tunnelwarden*' 2>/dev/null | sed 's/^/  journal: /' >&2 || true
    exit 1
}

set -o errtrace
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# holds WHAT COMMAND..: the command succeeds.
holds() {
    local what=$1
    shift
    "$@" >/dev/null 2>&1 || fail "$what"
    passed=$((passed + 1))
}

says() { # says WORDS COMMAND..: what the command prints contains WORDS
    local words=$1
    shift
    grep -qF -- "$words" <("$@" 2>&1 || true)
}

fails() { ! "$@"; }
is_gone() { [[ -z $(keeper) ]]; }

# becomes WHAT COMMAND..: the command succeeds before long.
becomes() {
    local what=$1
    shift
    for _ in $(seq 150); do
        if "$@" >/dev/null 2>&1; then
            passed=$((passed + 1))
            return
        fi
        sleep 0.1
    done
    fail "$what"
}

refused() { says 'status: NXDOMAIN' ask "${@:-@127.0.0.1}" connect.eu.ngrok-agent.com; }
is() { [[ $1 == "$2" ]]; }
property() { inside systemctl show --value -p "$1" "${2:-tunnelwarden.service}"; }
pid() { property MainPID; }
rights() { inside sed -n 's/^CapEff:\t//p' "/proc/$1/status"; }
# Where there is none, no number.
keeper() { inside systemctl show --value -p MainPID 'tunnelwarden-keeper@*' | tail -1; }
signal() { inside sh -c "kill -$1 $2"; }
owner() { inside stat -c '%U:%G %a' "$1"; }
installs() { inside env DEBIAN_FRONTEND=noninteractive apt-get install -y -o Dpkg::Options::=--force-confold "$@"; }

# -- a clean Debian

mkdir "$root" "$work/cgroup"
# In memory: that is quicker than any disk, for dpkg syncs all it writes.
mount -t tmpfs -o mode=755,size=1G tmpfs "$root"
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,nftables bookworm "$root" >"$work/debootstrap" 2>&1 ||
    { tail -5 "$work/debootstrap" >&2; exit 1; }
cp "$package" "$root/root/tunnelwarden_0.1.0-1_amd64.deb"

# The same as a later version, with another configuration in it.
dpkg-deb -R "$package" "$work/later"
sed -i 's/^Version: .*/Version: 9.9.9-1/' "$work/later/DEBIAN/control"
echo '# of a later version' >>"$work/later/etc/tunnelwarden/tunnelwarden.toml"
(cd "$work/later" && find etc usr -type f -exec md5sum {} + >DEBIAN/md5sums)
dpkg-deb -Zgzip --build --root-owner-group "$work/later" "$root/root/later.deb" >/dev/null

# Its systemd is to have a part of the machine's control groups and nothing else.
mount -t cgroup2 cgroup2 "$work/cgroup"
group=$work/cgroup/$(basename "$work")
mkdir "$group"
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec unshare --pid --mount --uts --ipc --net --cgroup --fork "$(realpath "$0")" --boot "$root"
) >"$work/boot" 2>&1 &
outer=$!
for _ in $(seq 300); do
    init=$(pgrep -P "$outer" || true)
    [[ -n $init ]] && inside systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded' && break
    kill -0 "$outer" 2>/dev/null || { cat "$work/boot" >&2; exit 1; }
    sleep 0.1
done
holds "it is booted" inside test -d /run/systemd/system

# -- a newcomer's three commands

install='apt install ./tunnelwarden_0.1.0-1_amd64.deb'
started='systemctl is-active tunnelwarden'
asked='dig @127.0.0.1 connect.eu.ngrok-agent.com'
for command in "$install" "$started" "$asked"; do
    holds "docs/operating.md says: $command" grep -qxF "$command" docs/operating.md
done
inside env DEBIAN_FRONTEND=noninteractive bash -c "cd /root && $install -y" >"$work/install" 2>&1 ||
    { cat "$work/install" >&2; exit 1; }
holds "it is started" inside bash -c "$started"
read -ra question <<<"${asked#dig }"
holds "a foreign ingress is refused" says 'status: NXDOMAIN' ask "${question[@]}"
holds "and by which rule" says 'EDE: 15 (Blocked): (ngrok/connect' ask "${question[@]}"

# -- what was installed

holds "the user" inside bash -c '[[ $(getent passwd tunnelwarden) == *:/nonexistent:/usr/sbin/nologin ]]'
holds "the state folder is its own" is "$(owner /var/lib/tunnelwarden)" 'tunnelwarden:tunnelwarden 750'
holds "so are the logs" is "$(owner /var/log/tunnelwarden)" 'tunnelwarden:tunnelwarden 750'
holds "the configuration is root's" is "$(owner /etc/tunnelwarden/tunnelwarden.toml)" 'root:root 644'
holds "the configuration is sound" inside tunnelwarden check --strict
holds "everything is as it was packed" inside dpkg --verify tunnelwarden
for file in man/man1/tunnelwarden.1.gz man/man1/tunnelwarden-firewall-status.1.gz man/man5/tunnelwarden.toml.5.gz \
    man/man5/tunnelwarden-policy.5.gz bash-completion/completions/tunnelwarden \
    zsh/vendor-completions/_tunnelwarden fish/vendor_completions.d/tunnelwarden.fish doc/tunnelwarden/operating.md \
    doc/tunnelwarden/sbom.cdx.json doc/tunnelwarden/third-party-licenses.txt; do
    holds "$file is there" inside test -s "/usr/share/$file"
done
holds "who holds the copyright says where the licences are" \
    grep -q /usr/share/doc/tunnelwarden/third-party-licenses.txt "$root/usr/share/doc/tunnelwarden/copyright"
for page in "$root"/usr/share/man/man[15]/tunnelwarden*; do
    holds "nothing to complain of in $page" is "$(zcat "$page" | mandoc -T lint -W warning)" ''
done
holds "the completions are bash's" bash -n "$root/usr/share/bash-completion/completions/tunnelwarden"
for unit in tunnelwarden-firewall.service tunnelwarden-keeper.socket tunnelwarden.service; do
    holds "$unit is enabled" inside systemctl is-enabled "$unit"
done
units=(tunnelwarden.service tunnelwarden.socket tunnelwarden-keeper.socket tunnelwarden-keeper@.service
    tunnelwarden-firewall.service)
for unit in "${units[@]}"; do
    # No man in a minimal system; everything else is looked at.
    complaints=$(inside systemd-analyze verify --man=no "/usr/lib/systemd/system/$unit" 2>&1 || true)
    holds "nothing to complain of in $unit: $complaints" is "$complaints" ''
done
holds "the forwarder is exposed by less than 2.5" \
    inside systemd-analyze security --offline=true --threshold=25 /usr/lib/systemd/system/tunnelwarden.service
holds "it has one right, ports below 1024" is "$(rights "$(pid)")" 0000000000000400
holds "and is its user" is "$(inside stat -c %U "/proc/$(pid)")" tunnelwarden

# -- reload, watchdog, sockets

config=$root/etc/tunnelwarden/tunnelwarden.toml
echo '[[clients]]
name = "lab"
networks = ["192.0.2.128/25"]' >>"$config"
holds "a reload" inside systemctl reload tunnelwarden
holds "took the file" says 'lab' inside tunnelwarden explain connect.eu.ngrok-agent.com --client 192.0.2.130
cp "$config" "$work/good"
echo 'broken' >>"$config"
holds "a reload of a broken file fails" fails inside systemctl reload tunnelwarden
holds "and what was in force is" refused
cp "$work/good" "$config"
holds "it never ended" is "$(property NRestarts)" 0

mkdir -p "$root/etc/systemd/system/tunnelwarden.service.d"
printf '[Service]\nWatchdogSec=2\n' >"$root/etc/systemd/system/tunnelwarden.service.d/watchdog.conf"
inside systemctl daemon-reload
inside systemctl restart tunnelwarden
sleep 3
holds "who is well is left alone" is "$(property NRestarts)" 0
signal STOP "$(pid)"
becomes "who hangs is started anew" eval 'is "$(property NRestarts)" 1 && refused'
rm -r "$root/etc/systemd/system/tunnelwarden.service.d"

inside systemctl daemon-reload
inside systemctl stop tunnelwarden
inside systemctl start tunnelwarden.socket
holds "with sockets of systemd a question starts it" refused
holds "over TCP as well" refused @127.0.0.1 +tcp
before=$(pid)
inside systemctl restart tunnelwarden &
restart=$! # kept now, for `says` starts something too
holds "no question is lost over a restart" refused
wait "$restart"
holds "which was one" fails is "$(pid)" "$before"
sed -i 's/127.0.0.1:53/127.0.0.2:53/' "$config"
inside systemctl restart --no-block tunnelwarden
becomes "a socket that is not asked for is named" says 'systemd passed a socket for 127.0.0.1:53' \
    inside journalctl -o cat -u tunnelwarden.service
cp "$work/good" "$config"
inside systemctl stop tunnelwarden.socket tunnelwarden
inside systemctl start tunnelwarden

# -- the firewall, held by a keeper of its own

sed -i -e 's/^mode = "off"/mode = "host"/' -e 's/^servers = .*/servers = ["udp:\/\/192.0.2.1"]/' "$config"
inside systemctl restart tunnelwarden
holds "whoever is asked, the answer is ours" refused @192.0.2.99
holds "the rules are those of the configuration" inside tunnelwarden firewall status --state-dir /var/lib/tunnelwarden
holds "the forwarder has no more rights than before" is "$(rights "$(pid)")" 0000000000000400
first=$(keeper)
holds "the keeper has one" is "$(rights "$first")" 0000000000001000
signal KILL "$first"
becomes "without its keeper the forwarder begins anew, with another" \
    eval '[[ $(keeper) =~ ^[1-9] && $(keeper) != "$first" ]] && refused @192.0.2.99'
inside systemctl stop tunnelwarden
becomes "the keeper ends with it" is_gone
holds "and DNS stays closed" fails says 'status:' ask @192.0.2.99 example.com

# As after a start of the machine.
inside tunnelwarden firewall remove >/dev/null
echo "[{\"address\": \"3.125.1.1\", \"name\": \"connect.ngrok-agent.com\", \"first\": \"$(date -u +%FT%TZ)\",
    \"last\": \"$(date -u +%FT%TZ)\"}]" >"$root/var/lib/tunnelwarden/learned-addresses.json"
inside systemctl restart tunnelwarden-firewall.service
holds "the rules are there before the forwarder" fails says 'status:' ask @192.0.2.99 example.com
holds "with what was learned" says '3.125.1.1' inside nft list set inet tunnelwarden ingress_v4
inside systemctl start tunnelwarden
holds "and then its own" refused @192.0.2.99
holds "as nobody else can change them, or they are watched" says 'in force' \
    inside tunnelwarden firewall status --state-dir /var/lib/tunnelwarden

# -- upgrade, back, remove, purge

before=$(pid)
cp "$config" "$work/changed"
holds "an upgrade" installs /root/later.deb
holds "keeps the configuration" cmp "$config" "$work/changed"
holds "restarts it" fails is "$(pid)" "$before"
holds "and it answers" refused @192.0.2.99
holds "back again" installs --allow-downgrades /root/tunnelwarden_0.1.0-1_amd64.deb
holds "with the configuration" cmp "$config" "$work/changed"
holds "answering" refused @192.0.2.99

holds "what was tried is on record" says connect.eu.ngrok-agent.com \
    inside tunnelwarden attempts --state-dir /var/lib/tunnelwarden
holds "it is removed" inside env DEBIAN_FRONTEND=noninteractive apt-get remove -y tunnelwarden
holds "nobody runs" is "$(inside find /proc -maxdepth 1 -user tunnelwarden)" ''
holds "no rule is left" is "$(inside nft list tables)" ''
holds "the configuration stays" cmp "$config" "$work/changed"
holds "the record stays" inside test -s /var/lib/tunnelwarden/attempts.db
holds "it is purged" inside env DEBIAN_FRONTEND=noninteractive apt-get purge -y tunnelwarden
left=$(inside find / -xdev -name '*tunnelwarden*' -not -path '/root/*' -not -path '/proc/*' -not -path '/sys/*')
holds "nothing is left: $left" is "$left" ''
holds "no user either" fails inside getent passwd tunnelwarden

printf 'package: %d passed\n' "$passed"
