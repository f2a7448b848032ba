# What is done often, by name. `just` lists it.

default:
    @just --list

# Everything that needs neither root nor network.
test:
    cargo test --locked

# Formatting and lints, as strict as they are kept.
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings

# Advisories, licences, banned crates and sources.
deny:
    cargo deny --locked check

# The daemon with what is given, or with its defaults: 127.0.0.1:5300 and [::1]:5300.
run *arguments:
    cargo run --release --locked -- serve {{arguments}}

# The program for an empty root, linked whole: target/container/tunnelwarden.
static:
    deploy/container/build

# The images' roots, run as a container runtime would, as root; and the manifests, which takes PyPI once.
check-containers: static
    tests/container.sh target/container/tunnelwarden
    tests/manifests.py target/container/tunnelwarden

# Every configuration that is shipped, warnings counted.
check-configs:
    #!/bin/sh
    set -eu
    cargo build --locked
    for file in deploy/config/*.toml; do
        ./target/debug/tunnelwarden check --strict --config "$file"
    done

# What single steps of a question cost.
bench:
    cargo bench --locked --bench micro

# Beside Debian's unbound, dnsdist, named and dnsmasq, and a bare echo; some eight minutes on a quiet machine with
# two CPUs. Writes docs/performance.md and its plots. `--quick` only sees whether everything runs.
bench-peers *arguments:
    cargo bench --locked --bench peers -- {{arguments}}

# What the firewall costs, beside plain routing: packets, connections, answers, replaced rules, memory; as root, some
# ten minutes. Writes its part of docs/performance.md. `--quick` only sees whether everything runs.
bench-firewall *arguments:
    cargo bench --locked --bench firewall -- {{arguments}}

# Everything at once against the release binary, load and attacks, on loopback, for ten minutes: memory, descriptors and
# threads must stay as they are, honest clients may lose nothing that no limit counts, and every attack must run into
# what is there for it. `just soak 120` measures two minutes, after a warm-up of as many.
soak *seconds:
    cargo bench --locked --bench peers -- soak {{seconds}}

# The Debian package, and its test in a clean Debian: as root, with network for that Debian.
package:
    tests/package.sh

# One parser on any bytes, for so many seconds, from its seeds and what was found before. Needs a nightly compiler and
# cargo-fuzz. What breaks it is left in fuzz/artifacts, and is run again by
# `cargo +nightly fuzz run TARGET fuzz/artifacts/TARGET/FILE`.
fuzz target seconds="600":
    #!/bin/sh
    set -eu
    mkdir -p fuzz/corpus/{{target}}
    words=fuzz/dictionaries/{{target}}.dict
    [ -e "$words" ] && words=-dict=$words || words=
    cargo +nightly fuzz run {{target}} fuzz/corpus/{{target}} fuzz/seeds/{{target}} -- \
        -max_total_time={{seconds}} -timeout=10 -print_final_stats=1 $words

# Every parser, one after the other, for so many seconds each.
fuzz-all seconds="600":
    #!/bin/sh
    set -eu
    for folder in fuzz/seeds/*; do
        just fuzz "${folder##*/}" {{seconds}}
    done

# What sys/ does with pointers and buffers, played by Miri. Needs a nightly compiler with its components miri and rust-src.
miri:
    tests/miri.sh

# What the program is made of, as a bill of materials and with every licence, held against what cargo says of it; takes
# PyPI once.
check-supply:
    tests/supply.py

# Whether the package and the static program are what their source makes: one more build, elsewhere.
check-reproducible:
    tests/reproducible.sh

# What has to pass before a change is merged.
all: lint test deny check-configs
