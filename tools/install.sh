#!/usr/bin/env bash
# Installs what `make build` has built.
#
# usage: install.sh [--destdir DIR] [--prefix DIR] [--binaries DIR] [--libtorch DIR|none] [--no-config]
#
# --destdir    staged below this folder, for packages
# --prefix     /usr/local unless said otherwise
# --binaries   where the programs were built; target/release
# --libtorch   the libtorch that the worker runs on, $LIBTORCH or third_party/libtorch; `none` leaves it out
# --no-config  leaves /etc alone
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

destdir= prefix=/usr/local binaries=$here/target/release libtorch=${LIBTORCH:-$here/third_party/libtorch} config=yes
while [ $# -gt 0 ]; do
    case $1 in
        --destdir) destdir=$2; shift 2 ;;
        --prefix) prefix=${2%/}; shift 2 ;;
        --binaries) binaries=$2; shift 2 ;;
        --libtorch) libtorch=$2; shift 2 ;;
        --no-config) config=no; shift ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
for program in atelier atelier-worker atelier-signer; do
    [ -x "$binaries/$program" ] || { echo "$binaries/$program is missing: run \`make build\` first" >&2; exit 1; }
done
# Ours has the layout of the wheels; one of yours has lib/ at its top.
if [ "$libtorch" = none ]; then
    libraries=
elif [ -d "$libtorch/torch/lib" ]; then
    libraries=$libtorch/torch/lib
elif [ -d "$libtorch/lib" ]; then
    libraries=$libtorch/lib
else
    echo "$libtorch is no libtorch: run \`make libtorch\` first" >&2
    exit 1
fi

to=$destdir$prefix
put() { # mode, destination's folder, files
    local mode=$1 folder=$2
    shift 2
    mkdir -p "$folder"
    install -m "$mode" -t "$folder" "$@"
}

put 755 "$to/bin" "$binaries/atelier" "$binaries/atelier-worker" "$binaries/atelier-signer"

# The networks that come with Atelier, and the licences of each.
mkdir -p "$to/share/atelier"
cp -R --no-preserve=mode,ownership "$here/models" "$to/share/atelier/"

if [ -n "$libraries" ]; then
    # The worker looks for it in ../lib/atelier/torch/lib; the libraries find each other by where they lie.
    lib=$to/lib/atelier
    rm -rf "$lib"
    mkdir -p "$lib/torch"
    cp -R --no-preserve=ownership "$libraries" "$lib/torch/lib"
    [ ! -d "$libtorch/nvidia" ] || cp -R --no-preserve=ownership "$libtorch/nvidia" "$lib/"
    for about in "$libtorch"/*.dist-info; do
        [ ! -d "$about" ] || cp -R --no-preserve=ownership "$about" "$lib/"
    done
    chmod -R u+w,a+rX "$lib"
fi

units=$to/lib/systemd/system
put 644 "$units" "$here"/systemd/atelier*.{service,socket,timer}
sed -i "s|/usr/bin/|$prefix/bin/|" "$units"/atelier*.service
put 644 "$to/lib/sysusers.d" "$here/systemd/sysusers.conf"
mv "$to/lib/sysusers.d/sysusers.conf" "$to/lib/sysusers.d/atelier.conf"
put 644 "$to/lib/tmpfiles.d" "$here/systemd/tmpfiles.conf"
mv "$to/lib/tmpfiles.d/tmpfiles.conf" "$to/lib/tmpfiles.d/atelier.conf"
put 644 "$to/share/atelier/systemd" "$here"/systemd/drop-ins/*.conf

put 644 "$to/share/doc/atelier" "$here"/README.md "$here"/CHANGELOG.md "$here"/docs/*.md
install -m 644 "$here/config/default.toml" "$to/share/doc/atelier/config.toml.example"

# What the program knows of itself.
"$binaries/atelier" man "$to/share/man/man1" >/dev/null
complete() { "$binaries/atelier" completions "$1" | install -D -m 644 /dev/stdin "$2"; }
complete bash "$to/share/bash-completion/completions/atelier"
complete zsh "$to/share/zsh/site-functions/_atelier"
complete fish "$to/share/fish/vendor_completions.d/atelier.fish"

if [ "$config" = yes ]; then
    mkdir -p "$destdir/etc/atelier"
    if [ ! -e "$destdir/etc/atelier/config.toml" ]; then
        sed "s|\"/usr/share/|\"$prefix/share/|" "$here/systemd/config.toml" |
            install -m 644 /dev/stdin "$destdir/etc/atelier/config.toml"
    else
        echo "$destdir/etc/atelier/config.toml is there and stays as it is"
    fi
fi
echo "installed below ${destdir}$prefix"
