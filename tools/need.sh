#!/usr/bin/env bash
# Checks for the programs that building (or testing) needs. As root on a Debian machine it installs what is missing;
# elsewhere it names it.
set -eu

what=${1:-build}
missing=()
packages=()
want() { # program, Debian package, what for
    if ! command -v "$1" >/dev/null 2>&1; then
        missing+=("$1 ($3)")
        packages+=("$2")
    fi
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "Rust is missing: install rustup, which brings cargo, as https://rustup.rs says." >&2
    exit 1
fi
want cc gcc "compiles SQLite and the image codecs"
want c++ g++ "compiles the worker's bridge to libtorch"
want make make "runs the targets"
want python3 python3 "fetches libtorch"
if command -v python3 >/dev/null 2>&1 && ! python3 -m pip --version >/dev/null 2>&1; then
    missing+=("pip (fetches libtorch)")
    packages+=(python3-pip)
fi
if [ "$what" = test ]; then
    want openssl openssl "makes the certificates of the tests"
    want exiftool libimage-exiftool-perl "checks the metadata of outputs in the tests"
fi

if [ "$what" = systemd ]; then
    want unshare util-linux "makes the box that systemd is tested in"
    want systemctl systemd "is what the units are tested with"
    want dbus-daemon dbus "lets systemctl speak with systemd"
    want useradd passwd "makes the users of the tests"
fi
if [ "$what" = deb ]; then
    want dpkg-deb dpkg "builds the package"
    want fakeroot fakeroot "lets root own the package's files"
    want strip binutils "leaves the debug information out"
fi
if [ "$what" = deb-test ]; then
    want debootstrap debootstrap "makes the clean root that the package is installed in"
    want unshare util-linux "keeps that root apart"
fi

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing what is missing: ${packages[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null && exit 0
fi
printf 'Missing: %s\n' "${missing[@]}" >&2
echo "On Debian or Ubuntu: sudo apt-get install ${packages[*]}" >&2
exit 1
