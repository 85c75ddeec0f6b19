#!/usr/bin/env bash
# Builds two Debian packages of what `make build` has built: `atelier`, and `atelier-libtorch` for the libraries that
# its worker runs on, which change far less often.
#
# usage: deb.sh [--binaries DIR] [--libtorch DIR] [--output DIR] [--version VERSION] [--no-libtorch]
#
# --binaries     where the programs were built; target/release
# --libtorch     $LIBTORCH or third_party/libtorch
# --output       where the packages go; target/debian
# --version      the program's own, unless said otherwise
# --no-libtorch  builds the first package only
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

binaries=$here/target/release libtorch=${LIBTORCH:-$here/third_party/libtorch} output=$here/target/debian
version= with_libtorch=yes
while [ $# -gt 0 ]; do
    case $1 in
        --binaries) binaries=$2; shift 2 ;;
        --libtorch) libtorch=$2; shift 2 ;;
        --output) output=$2; shift 2 ;;
        --version) version=$2; shift 2 ;;
        --no-libtorch) with_libtorch=no; shift ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
architecture=$(dpkg --print-architecture)
[ -n "$version" ] || version=$("$binaries/atelier" --version | awk '{ print $2 }')
# build-version is the wheel's own word, STAMP our script's: a CPU's libtorch is not taken for one with CUDA.
for file in "$libtorch/torch/build-version" "$libtorch/build-version"; do
    [ ! -f "$file" ] || libtorch_version=$(cut -d+ -f1 "$file")
done
[ -n "${libtorch_version:-}" ] || { echo "$libtorch names no version: run \`make libtorch\`" >&2; exit 1; }
[ ! -f "$libtorch/STAMP" ] || libtorch_version="$libtorch_version+$(cut -d' ' -f1 "$libtorch/STAMP")"

work=$(mktemp -d -t atelier-deb.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p "$output"
umask 022

# The newest symbol of the C library that a program asks for.
glibc_of() { objdump -T "$@" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | cut -d_ -f2; }

pack() { # package's folder
    local root=$1 package
    package=$(sed -n 's/^Package: //p' "$root/DEBIAN/control")
    echo "Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)" >>"$root/DEBIAN/control"
    (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    local file="$output/${package}_$(sed -n 's/^Version: //p' "$root/DEBIAN/control")_$architecture.deb"
    fakeroot dpkg-deb --build -Zzstd -z3 "$root" "$file" >/dev/null
    echo "$file"
}

copyright() { # package, licence
    mkdir -p "$work/$1/usr/share/doc/$1"
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: %s\nLicense: %s\n' \
        "$3" "$2" >"$work/$1/usr/share/doc/$1/copyright"
}

# ------------------------------------------------------------------------------------------------------------ atelier
root=$work/atelier
"$here/tools/install.sh" --destdir "$root" --prefix /usr --binaries "$binaries" --libtorch none >/dev/null
strip --strip-unneeded "$root"/usr/bin/*
gzip -9n "$root"/usr/share/man/man1/*.1
mkdir -p "$root/usr/share/zsh/vendor-completions"
mv "$root/usr/share/zsh/site-functions/_atelier" "$root/usr/share/zsh/vendor-completions/"
rm -r "$root/usr/share/zsh/site-functions"
copyright atelier "MIT or Apache-2.0; the networks' licences are in /usr/share/atelier/models/LICENSES" "the authors of Atelier"
mkdir -p "$root/DEBIAN"
for script in postinst prerm postrm; do install -m 755 "$here/tools/debian/$script" "$root/DEBIAN/$script"; done
echo /etc/atelier/config.toml >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<CONTROL
Package: atelier
Version: $version
Architecture: $architecture
Maintainer: The authors of Atelier <root@localhost>
Section: graphics
Priority: optional
Depends: libc6 (>= $(glibc_of "$binaries/atelier" "$binaries/atelier-worker" "$binaries/atelier-signer")), libgcc-s1, libstdc++6 (>= 12), atelier-libtorch (= $libtorch_version), systemd (>= 247) | systemd-standalone-sysusers, systemd (>= 247) | systemd-standalone-tmpfiles, init-system-helpers (>= 1.54)
Description: image workshop in one box: a drop folder, a durable queue, a GPU worker
 A long-running daemon watches a folder and an HTTP endpoint; drop a photo or post
 a job, come back to a finished file. What was accepted is never lost and never
 done twice, whatever is killed in between, and every original keeps its EXIF, its
 colour profile and its XMP.
CONTROL
pack "$root"

# --------------------------------------------------------------------------------------------------- atelier-libtorch
[ "$with_libtorch" = yes ] || exit 0
root=$work/atelier-libtorch
mkdir -p "$root/usr/lib/atelier" "$root/DEBIAN" "$work/scrap"
"$here/tools/install.sh" --destdir "$work/scrap" --prefix /usr --binaries "$binaries" --libtorch "$libtorch" --no-config >/dev/null
mv "$work/scrap/usr/lib/atelier" "$root/usr/lib/"
copyright atelier-libtorch "BSD-3-Clause and others, named in /usr/lib/atelier/*.dist-info" "the authors of PyTorch"
cat >"$root/DEBIAN/control" <<CONTROL
Package: atelier-libtorch
Version: $libtorch_version
Architecture: $architecture
Maintainer: The authors of Atelier <root@localhost>
Section: libs
Priority: optional
Depends: libc6 (>= $(glibc_of "$root"/usr/lib/atelier/torch/lib/*.so*)), libgcc-s1, libstdc++6 (>= 12)
Description: libtorch as Atelier's worker needs it
 The libraries that atelier-worker computes with, and nothing else of PyTorch.
CONTROL
pack "$root"
