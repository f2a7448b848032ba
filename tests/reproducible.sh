#!/usr/bin/env bash
# What is shipped is what the source makes: the Debian package and the static program are built once more, elsewhere,
# and have to be the same, byte by byte. Elsewhere is another folder, with another home and folder of crates, another
# time zone, language, name of the user and umask, and no git.
# usage: tests/reproducible.sh [PACKAGE BINARY]   what deploy/ made of this tree; without, it is built
#
# Needs what deploy/debian/build and deploy/container/build need. No network, once the crates and tools are there.
set -euo pipefail

package=${1:+$(realpath "$1")} binary=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
[[ -n $package ]] || package=$(deploy/debian/build)
[[ -n $binary ]] || binary=$(deploy/container/build)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
differing=0

# -- elsewhere

cargo=$(realpath "${CARGO_HOME:-$HOME/.cargo}")
elsewhere=$work/elsewhere/tree
mkdir -p "$elsewhere" "$work/home" "$work/crates"
ln -s "$cargo"/* "$work/crates/"
build=(
    TUNNELWARDEN_REVISION="${TUNNELWARDEN_REVISION:-$(git rev-parse HEAD)}"
    SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
    RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
    CARGO_HOME="$work/crates" CARGO_NET_OFFLINE=true HOME="$work/home"
    USER=somebody LOGNAME=somebody TZ=Pacific/Kiritimati LC_ALL=C.UTF-8
)
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
    (umask 077 && tar --extract --no-same-permissions --directory "$elsewhere")
other_package=$(umask 077 && env "${build[@]}" "$elsewhere/deploy/debian/build" "$work/package")
other_binary=$elsewhere/$(umask 077 && env "${build[@]}" "$elsewhere/deploy/container/build")

# -- compared

# where ONE OTHER: what differs of two files, as far as it is easily said.
where() {
    cmp "$1" "$2" || true
    readelf --file-header "$1" >/dev/null 2>&1 || { diff --text "$1" "$2" | head -20 | cut -c1-200; return 0; }
    local section
    while read -r section; do
        cmp -s <(contents "$section" "$1") <(contents "$section" "$2") || echo "section $section"
    done < <(readelf --wide --sections "$1" | sed -nE 's/^ *\[ *[0-9]+\] (\S+) .*/\1/p')
    diff <(strings "$1" | sort -u) <(strings "$2" | sort -u) | head -20 | cut -c1-200
}
contents() { objcopy --dump-section "$1=/dev/stdout" "$2" /dev/null 2>/dev/null; }

same() { # same NAME ONE OTHER
    if cmp -s "$2" "$3"; then
        printf '%s  %s, twice\n' "$(sha256sum <"$2" | cut -d' ' -f1)" "$1"
        return
    fi
    differing=$((differing + 1))
    printf 'DIFFERS: %s\n' "$1" >&2
    where "$2" "$3" 2>&1 | sed 's/^/  /' >&2 || true
}

dpkg-deb --extract "$package" "$work/one"
dpkg-deb --extract "$other_package" "$work/other"
same "the program" "$work/one/usr/bin/tunnelwarden" "$work/other/usr/bin/tunnelwarden"
same "the static program" "$binary" "$other_binary"
same "$(basename "$package")" "$package" "$other_package"
if ((differing)); then
    diff <(dpkg-deb --contents "$package") <(dpkg-deb --contents "$other_package") >&2 || true
    diff --brief --recursive "$work/one" "$work/other" >&2 || true
    exit 1
fi
