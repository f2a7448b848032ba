#!/usr/bin/env bash
# Puts the program, its user and what it needs on this machine.
# INPUT_BINARY: a program; empty: built from the repository that this file is in.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

[[ $(uname -s) == Linux ]] || fail "this needs a Linux runner"
as_root true || fail "this needs root, or sudo without a password"

binary=${INPUT_BINARY:-}
if [[ -z $binary ]]; then
    command -v cargo >/dev/null || fail "there is no cargo to build with: name a program with binary"
    build=${RUNNER_TEMP:?}/tunnelwarden-build
    cargo build --release --locked --manifest-path "$here/../../Cargo.toml" --target-dir "$build"
    binary=$build/release/tunnelwarden
fi
[[ -f $binary && -x $binary ]] || fail "there is no program at $binary"

packages=()
PATH=$PATH:/usr/sbin command -v nft >/dev/null || packages+=(nftables)
command -v jq >/dev/null || packages+=(jq)
if ((${#packages[@]})); then
    command -v apt-get >/dev/null || fail "missing here: ${packages[*]}"
    as_root apt-get update -qq
    as_root apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
fi

as_root install -o root -g root -m 755 -- "$binary" "$program"
if ! id tunnelwarden >/dev/null 2>&1; then
    as_root useradd --system --no-create-home --shell /usr/sbin/nologin tunnelwarden
fi
"$program" --version
