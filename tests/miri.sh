#!/bin/sh
# What sys/ does with pointers, and with structures of the kernel's, played by Miri: all of it that Miri has system calls
# for. Needs a nightly toolchain with its components miri and rust-src.
set -eu
cd "$(dirname "$0")/.."
# It is some hundred times slower than the processor.
export MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=16
exec cargo +nightly miri test --quiet --lib --locked -- \
    sys::ancillary \
    sys::datagram::tests::every_pointer \
    sys::netlink::message \
    sys::netlink::elements::tests::no_bytes \
    sys::netlink::flows::tests::no_bytes \
    sys::netlink::packets::tests::a_gap \
    sys::netlink::packets::tests::no_packet \
    sys::netlink::sockets::tests::no_bytes
