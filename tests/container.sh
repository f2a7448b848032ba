#!/usr/bin/env bash
# Runs the images' roots as a container runtime would, without one: laid out by the Dockerfile's own lines, in namespaces
# of their own, as their number of a user, on a read-only root, with the rights that are documented and no others.
# usage: tests/container.sh [BINARY]   a statically linked one; without, it is built
#
# As root, with nftables, libcap2-bin, iproute2, util-linux, dnsmasq, dig and python3. No packet leaves: the internet is a
# namespace.
set -euo pipefail

here=$(realpath "$(dirname "$0")/..")
dockerfile=$here/deploy/container/Dockerfile
kubernetes=$here/deploy/kubernetes

if [[ ${1:-} != --inside ]]; then
    binary=$(realpath "${1:-$here/$("$here/deploy/container/build")}")
    lists=$here/target/container/lists
    "$here/deploy/supply/list" "$lists"
    # The first process of the namespaces takes everything with it, and this one takes the first, however it ends.
    exec setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc \
        "$0" --inside "$binary" "$lists"
fi
binary=$2 lists=$3

# What is written here is gone with the namespace; so are `ip netns` names, in /run.
mount -t tmpfs tmpfs /run
mkdir /run/work && work=/run/work
passed=0

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    for log in "$work"/*.log; do sed "s/^/  $(basename "$log" .log): /" "$log" >&2; done
    exit 1
}

holds() { # holds WHAT COMMAND..: the command succeeds
    local what=$1
    shift
    "$@" >"$work/last.log" 2>&1 || fail "$what"
    passed=$((passed + 1))
}

fails() { # fails WHAT COMMAND..: it does not
    local what=$1
    shift
    "$@" >"$work/last.log" 2>&1 && fail "$what"
    passed=$((passed + 1))
}

ends() { # ends STATUS WHAT COMMAND..: with this exit status; the command may take the place of its shell
    local wanted=$1 what=$2 status=0
    shift 2
    ("$@") >"$work/last.log" 2>&1 || status=$?
    ((status == wanted)) || fail "$what: $status and not $wanted"
    passed=$((passed + 1))
}

says() { # says WORDS COMMAND..: what the command prints contains WORDS
    local words=$1 said
    shift
    said=$("$@" 2>&1) || true
    grep -F -- "$words" <<<"$said" || { printf '%s\n' "$said"; return 1; }
}

eventually() { # eventually SECONDS COMMAND..: it succeeds within so many
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# -- the images, from the Dockerfile

stage() { awk -v stage="$1" '/^FROM /{ within = $4 == stage } within && !/^(#|$)/' "$dockerfile"; } # its lines
words() { tr -d '[]",' ; } # of a list in JSON whose words have no such signs

# image NAME STAGE: the root, as the stage copies it.
image() {
    local root=$work/$1 instruction arguments
    mkdir "$root"
    while read -r instruction arguments; do
        case $instruction in
            FROM) [[ $arguments == scratch* ]] || fail "$2 does not begin with nothing" ;;
            COPY) copy "$root" $arguments ;;
            ENV | USER | EXPOSE | VOLUME | HEALTHCHECK | ENTRYPOINT | CMD) ;;
            *) fail "$dockerfile: this test does not know $instruction" ;;
        esac
    done < <(stage "$2")
    # Where a runtime puts its own.
    mkdir -p "$root/dev"
    touch "$root/etc/resolv.conf"
}

copy() { # copy ROOT --from=layout [--chown=USER] FROM TO
    local root=$1 owner=0:0
    [[ $2 == --from=layout ]] || fail "copied from elsewhere: $2"
    shift 2
    if [[ $1 == --chown=* ]]; then
        owner=${1#--chown=}
        shift
    fi
    mkdir -p "$root$2"
    cp -a "$work$1/." "$root$2"
    [[ $owner == 0:0 ]] || chown -R "$owner" "$root$2"
}

holds "the program is built as the test has it" grep -qx 'RUN deploy/container/build' "$dockerfile"
holds "and laid out so" grep -qx 'RUN /container/lay-out /tunnelwarden /lists /layout' "$dockerfile"
holds "with what it is made of" grep -qx 'RUN deploy/supply/list target/supply' "$dockerfile"
"$here/deploy/container/lay-out" "$binary" "$lists" "$work/layout"

# -- a container

rights_but() { # rights_but RIGHT..: all there are, but these
    local all
    all=$(capsh --print | sed -n 's/^Bounding set =//p')
    for right in "$@"; do all=$(sed "s/\(^\|,\)$right\(,\|\$\)/\1\2/; s/,,/,/; s/^,//; s/,\$//" <<<"$all"); done
    echo "$all"
}

# run NETWORK ROOT STAGE OPTIONS.. -- WORDS..: in the place of this shell, a container's first process.
# OPTIONS: user=NUMBER, the image's without; right=RIGHT; no-new-privileges; configuration=FOLDER
run() {
    local network=$1 root=$2 stage=$3 configuration=
    shift 3
    for option in "$@"; do [[ $option != configuration=* ]] || configuration=${option#configuration=}; done
    # Without a tmpfs anywhere: only the volume can be written to.
    exec nsenter --net="/run/netns/$network" unshare --mount --pid --fork --kill-child bash -euc '
        root=$1 configuration=$2
        shift 2
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=755 tmpfs "$root/dev"
        for device in full null random tty urandom zero; do
            touch "$root/dev/$device"
            mount --bind "/dev/$device" "$root/dev/$device"
        done
        ln -s /proc/self/fd "$root/dev/fd"
        for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%:*}" "$root/dev/${number#*:}"; done
        mount -o remount,ro "$root/dev"
        mount -t tmpfs -o uid=10053,gid=10053,mode=755 tmpfs "$root/var/lib/tunnelwarden"
        if [[ $configuration ]]; then
            mount --bind "$configuration" "$root/etc/tunnelwarden"
            mount -o remount,bind,ro "$root/etc/tunnelwarden"
        fi
        exec "$@"
    ' run "$root" "$configuration" $(process "$root" "$stage" "$@")
}

# process ROOT STAGE OPTIONS.. -- WORDS..: the words that become its process: environment, user and rights.
process() {
    local root=$1 stage=$2 user number environment rights=() limits=()
    user=$(stage "$stage" | sed -n 's/^USER \([0-9]*\):\1$/\1/p')
    [[ $user ]] || fail "$stage has no number for a user"
    environment=$(stage "$stage" | sed -n 's/^ENV //p')
    shift 2
    while [[ $1 != -- ]]; do
        case $1 in
            user=*) user=${1#user=} ;;
            right=*) rights+=("${1#right=}") ;;
            no-new-privileges) limits+=(--no-new-privs) ;;
        esac
        shift
    done
    shift
    number=$(stage "$stage" | sed -n 's/^ENTRYPOINT //p' | words)
    echo env -i $environment /usr/sbin/capsh --chroot="$root" --drop="$(rights_but ${rights[@]+"${rights[@]}"})" --inh= \
        --groups= --gid="$user" --uid="$user" ${limits[@]+"${limits[@]}"} --shell="$number" -- "$@"
}

# start NAME NETWORK STAGE OPTIONS..: a container that runs what the image says; its first process is $container.
start() {
    local name=$1 network=$2 stage=$3
    shift 3
    options=("$work/$name" "$stage" "$@")
    image "$name" "$stage"
    printf 'nameserver 9.9.9.9\n' >"$work/$name/etc/resolv.conf"
    local words
    words=$(stage "$stage" | sed -n 's/^CMD //p' | words)
    run "$network" "$work/$name" "$stage" "$@" -- $words >"$work/$name.log" 2>&1 &
    runtime=$!
    eventually 10 runs >/dev/null || fail "$name does not start"
    container=$(pgrep -P "$runtime")
    eventually 20 healthy >"$work/last.log" 2>&1 || fail "$name is not ready"
}

# Until then the shell has children of its own.
runs() { [[ $(cat "/proc/$runtime/comm") == unshare ]] && pgrep -P "$runtime"; }

# inside WORDS..: the program once more in the container, as `docker exec` and probes do.
inside() { nsenter --target "$container" --mount --net --pid $(process "${options[@]}" -- "$@"); }

# healthy: the image's own healthcheck. Its first word is the program.
healthy() { inside $(stage "${options[1]}" | sed -n 's/^HEALTHCHECK .*CMD \[[^,]*, //p' | words); }

has() { # has FIELD VALUE: in the status of its first process
    awk -v field="$1:" -v value="$2" '$1 == field { found = $2 == value } END { exit !found }' "/proc/$container/status"
}

stops() { # stops NAME: on SIGTERM, soon and with 0
    kill -TERM "$container"
    holds "$1 stops with 0" timeout 15 tail --pid="$runtime" -f /dev/null
    wait "$runtime" || fail "$1 stops with 0, not $?"
}

# -- networks: client - box - internet - pod

network() { # network NAME: with loopback
    ip netns add "$1"
    ip -n "$1" link set lo up
}
address() { # address NAME ADDRESS INTERFACE
    if [[ $2 == *:* ]]; then set -- "$@" nodad; fi
    ip -n "$1" address add "$2" dev "${@:3}"
}
cable() { # cable NAME ADDRESS.. -- NAME ADDRESS..
    local left=$1 right addresses=()
    shift
    while [[ $1 != -- ]]; do addresses+=("$1"); shift; done
    right=$2
    shift 2
    ip -n "$left" link add "to-$right" type veth peer name "to-$left" netns "$right"
    for address in "${addresses[@]}"; do address "$left" "$address" "to-$right"; done
    for address in "$@"; do address "$right" "$address" "to-$left"; done
    ip -n "$left" link set "to-$right" up
    ip -n "$right" link set "to-$left" up
}
for name in client box internet pod podlet; do network $name; done
cable client 10.1.0.2/24 fd00:1::2/64 -- box 10.1.0.1/24 fd00:1::1/64
cable box 10.2.0.1/24 fd00:2::1/64 -- internet 10.2.0.2/24 fd00:2::2/64
cable pod 10.3.0.2/24 -- internet 10.3.0.1/24
cable podlet 10.4.0.2/24 -- internet 10.4.0.1/24
ip -n client route add default via 10.1.0.1
ip -n client route add default via fd00:1::1
ip -n box route add default via 10.2.0.2
ip -n box route add default via fd00:2::2
ip -n pod route add default via 10.3.0.1
ip -n podlet route add default via 10.4.0.1
ip -n internet route add 10.1.0.0/24 via 10.2.0.1
ip -n internet route add fd00:1::/64 via fd00:2::1
# Resolvers, the cluster's DNS, an ingress and somebody else.
for address in 8.8.8.8 9.9.9.9 10.96.0.10 52.28.0.7 52.28.0.8 2001:4860:4860::8888; do
    address internet $address lo
done
ip netns exec box sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
at() { nsenter --net="/run/netns/$1" "${@:2}"; } # at NETWORK COMMAND..

# Names: ngrok's are at the ingress, all others at one address.
at internet dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= \
    --address=/#/192.0.2.7 --address=/#/2001:db8::7 \
    --address=/ngrok-agent.com/52.28.0.7 --address=/ngrok-agent.com/2a05:d014::7 >"$work/dnsmasq.log" 2>&1 &
at internet python3 -m http.server 2222 --directory "$work/layout" >"$work/http.log" 2>&1 &
ask() { at "$1" dig +tries=1 +time=5 "${@:2}"; } # ask NETWORK WORDS FOR DIG..
# As a job: an ordinary user without a right.
as_job() { at "$1" setpriv --reuid 1000 --regid 1000 --clear-groups --bounding-set=-all "${@:2}"; }
dials() { as_job "$1" timeout 5 bash -c "</dev/tcp/$2/2222"; } # dials NETWORK ADDRESS
job() { as_job "$1" dig +tries=1 +time=5 "${@:2}"; }

blocked=connect.eu.ngrok-agent.com
refused='EDE: 15 (Blocked): (ngrok/connect'
eventually 10 says 192.0.2.7 ask client @8.8.8.8 www.example >/dev/null || fail "there is no internet to be asked"
eventually 10 dials client 52.28.0.7 2>/dev/null || fail "there is no ingress to be dialled"

# -- the resolver: the program, three files, and what it is made of

holds "it is under 12 MB" test "$(stat -c %s "$binary")" -lt 12000000
fails "it needs no loader" grep -q INTERP <(readelf --program-headers "$binary")
fails "and no library" grep -q NEEDED <(readelf --dynamic "$binary")
start resolver box resolver no-new-privileges
holds "nothing else is in its root" test "$(cd "$work/resolver" && find . -type f | sort | tr '\n' ' ')" = \
    "./etc/group ./etc/passwd ./etc/resolv.conf ./etc/tunnelwarden/tunnelwarden.toml ./usr/local/bin/tunnelwarden \
./usr/share/doc/tunnelwarden/sbom.cdx.json ./usr/share/doc/tunnelwarden/third-party-licenses.txt "
holds "it is the first process" test "$(awk '/^NSpid/ { print $3 }' "/proc/$container/status")" = 1
for line in "Uid 10053" "Gid 10053" "CapPrm 0000000000000000" "CapBnd 0000000000000000" "NoNewPrivs 1"; do
    holds "it runs with $line" has $line
done
fails "its root can be written to" nsenter --target "$container" --mount touch "$work/resolver/etc/new"
for server in 10.1.0.1 fd00:1::1; do
    for way in +notcp +tcp; do
        holds "refused at $server $way" says 'status: NXDOMAIN' ask client -p 5300 @$server $way $blocked
        holds "with the rule at $server $way" says "$refused" ask client -p 5300 @$server $way $blocked AAAA
        holds "others are answered at $server $way" says 192.0.2.7 ask client -p 5300 @$server $way www.example
    done
done
holds "its record can be searched" says "$blocked" inside attempts
holds "and is on standard output" eventually 5 grep -q '"rule":"ngrok/connect"' "$work/resolver.log"
holds "it is healthy" healthy
stops resolver
ends 1 "the healthcheck of a daemon that is gone" run box "$work/resolver" resolver -- healthcheck

# -- the appliance: a gateway, with nft in its root

gateway=$work/gateway.configuration
mkdir "$gateway"
cat >"$gateway/tunnelwarden.toml" <<'EOF'
[listen]
dns = ["10.1.0.1:53", "[fd00:1::1]:53"]
[upstream]
servers = ["udp://9.9.9.9"]
[firewall]
mode = "gateway"
lan = ["to-client"]
EOF
rights=(right=cap_net_admin right=cap_net_bind_service)
start appliance box appliance "${rights[@]}" configuration="$gateway"
holds "the forwarder has one right" has CapPrm 0000000000000400
holds "and is nobody" has Uid 10053
holds "the rules are in force" inside firewall status
holds "and what was learned is closed" eventually 10 says 52.28.0.7 at box nft list set inet tunnelwarden ingress_v4
for server in 8.8.8.8 2001:4860:4860::8888; do
    holds "whoever asks $server is refused" says "$refused" ask client @$server $blocked
    holds "or answered" says 192.0.2.7 ask client @$server +tcp www.example
done
fails "an ingress is dialled" dials client 52.28.0.7
holds "and another address is" dials client 52.28.0.8
holds "it was recorded" says dns-redirected inside attempts
holds "it is healthy" healthy
stops appliance
holds "the rules outlast it" at box nft list table inet tunnelwarden

# -- behind the cluster's DNS, with the manifest's own files

# manifest FOLDER: what its ConfigMap holds, as the kubelet lays it out: links through one that is swapped.
manifest() {
    local to=$work/$1.configuration
    mkdir -p "$to/..1"
    cp "$kubernetes/$1"/*.toml "$to/..1/"
    ln -s ..1 "$to/..data"
    for file in "$kubernetes/$1"/*.toml; do ln -s "..data/$(basename "$file")" "$to/"; done
}
page() { at internet python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$1"; }

manifest resolver
cluster=$work/resolver.configuration
mkdir "$cluster/..1/policies"
mv "$cluster/..1/acme.toml" "$cluster/..1/policies/"
rm "$cluster/acme.toml"
ln -s ..data/policies "$cluster/policies"
start deployment podlet resolver no-new-privileges configuration="$cluster"
holds "a pack of the ConfigMap holds" says 'status: NXDOMAIN' ask internet -p 5300 @10.4.0.2 a.relay.example
holds "and others pass" says 192.0.2.7 ask internet -p 5300 @10.4.0.2 next.example
for path in livez readyz metrics; do holds "$path is there by the pod's address" page "http://10.4.0.2:9053/$path"; done
cp -r "$cluster/..1" "$cluster/..2"
sed -i 's/\.relay\.example/&", ".next.example/' "$cluster/..2/policies/acme.toml"
ln -s ..2 "$cluster/..new"
mv -T "$cluster/..new" "$cluster/..data"
holds "a ConfigMap that changed is loaded" eventually 10 says NXDOMAIN ask internet -p 5300 @10.4.0.2 next.example
stops deployment

# -- beside a job, with the manifests' own files

manifest sidecar-firewall
holds "a job reaches an ingress before" dials pod 52.28.0.7
start sidecar-firewall pod appliance "${rights[@]}" configuration="$work/sidecar-firewall.configuration"
holds "a job that asks another resolver is refused" says "$refused" job pod @8.8.8.8 $blocked
holds "so is one that asks the cluster's" says "$refused" job pod @10.96.0.10 $blocked
holds "which answers for others" says 192.0.2.7 job pod @10.96.0.10 www.example
fails "a job dials an ingress by its address" dials pod 52.28.0.7
holds "and anybody else" dials pod 52.28.0.8
holds "the rules are in force" inside firewall status
stops sidecar-firewall

manifest sidecar
image rules appliance
rules() { # rules WHAT: the init container, as its manifest has it
    run podlet "$work/rules" appliance user=0 no-new-privileges "${rights[@]}" \
        configuration="$work/sidecar.configuration" -- firewall "$1" --config /etc/tunnelwarden/rules.toml
}
ends 4 "there are no rules before" rules status
ends 0 "the init container puts them in force" rules apply
ends 0 "they are as they should be" rules status
holds "nothing is left of looking" test "$(at podlet nft list tables)" = "table inet tunnelwarden"
fails "before the sidecar answers nobody does" says 'status:' job podlet @8.8.8.8 www.example
start sidecar podlet resolver no-new-privileges configuration="$work/sidecar.configuration"
holds "it has no right" has CapBnd 0000000000000000
holds "a job that asks another resolver is refused" says "$refused" job podlet @8.8.8.8 $blocked
holds "and is answered else" says 192.0.2.7 job podlet @10.96.0.10 www.example
# As docs/containers.md says: nobody stays who could close it.
holds "without a keeper, an ingress can be dialled by its address" dials podlet 52.28.0.7
stops sidecar
at podlet nft flush chain inet tunnelwarden refuse
ends 4 "that rules were taken out is seen" rules status

printf 'container: %d passed\n' "$passed"
