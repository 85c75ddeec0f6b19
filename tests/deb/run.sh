#!/usr/bin/env bash
# The Debian packages on a clean Debian with a running systemd: installed, used, upgraded, removed, purged.
#
# usage: run.sh [--binaries DIR] [--libtorch DIR]
#
# debootstrap makes the clean root from the mirror that this machine's apt uses, once; it is kept in target/debian-root.
set -u
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
binaries=$repo/target/release
libtorch=${LIBTORCH:-$repo/third_party/libtorch}
clean=${ATELIER_DEBIAN_ROOT:-$repo/target/debian-root}
while [ $# -gt 0 ]; do
    case $1 in
        --binaries) binaries=$2; shift 2 ;;
        --libtorch) libtorch=$2; shift 2 ;;
        *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
BOX_ROOT=$clean
# shellcheck source=tests/systemd/box.sh
. "$here/../systemd/box.sh"
# shellcheck source=tests/systemd/checks.sh
. "$here/../systemd/checks.sh"

# ------------------------------------------------------------------------------------------------------ the clean root
if [ ! -e "$clean/COMPLETE" ]; then
    command -v debootstrap >/dev/null || { echo "debootstrap is missing: run \`tools/need.sh deb-test\`" >&2; exit 1; }
    mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' | awk '$2 ~ /^[a-z]+$/ { print $1; exit }')
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    rm -rf "$clean"
    mkdir -p "$clean"
    echo "making a clean $release from ${mirror:-the usual mirror} …"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libnss-systemd,python3-minimal,libstdc++6 \
        "$release" "$clean" ${mirror:+"$mirror"} >"$clean.log" 2>&1 ||
        { tail -5 "$clean.log" >&2; echo "no clean Debian can be made, so nothing is tested" >&2; exit 1; }
    touch "$clean/COMPLETE"
fi
box_need || exit 1

# -------------------------------------------------------------------------------------------------------- the packages
payload=$(mktemp -d -t atelier-payload.XXXXXX)
chmod 755 "$payload"
finish() {
    box_clean
    rm -rf "$payload"
}
trap finish EXIT
trap 'exit 130' INT TERM
mkdir -p "$payload/packages" "$payload/opt"
version=$("$binaries/atelier" --version | awk '{ print $2 }')
"$repo/tools/deb.sh" --binaries "$binaries" --libtorch "$libtorch" --output "$payload/packages" || exit 1
"$repo/tools/deb.sh" --binaries "$binaries" --libtorch "$libtorch" --output "$payload/packages" \
    --version "$version+next" --no-libtorch || exit 1
cp "$repo/tools/demo/chelsea.jpg" "$payload/opt/photo.jpg"

box_boot "$payload" || { echo "FAIL the box does not boot" >&2; exit 1; }
config=/etc/atelier/config.toml
lib=/var/lib/atelier
old="/packages/atelier_${version}_amd64.deb" new="/packages/atelier_${version}+next_amd64.deb"
install() { box env DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i "$@"; }
enabled() { [ "$(box systemctl is-enabled "$1")" = enabled ]; }
show() { box systemctl show -P "$1" "${2:-atelier.service}"; }
is() { [ "$(show "$1" "${3:-atelier.service}")" = "$2" ]; }

# -------------------------------------------------------------------------------------------------------------- install
check "install: dpkg takes both packages" box sh -c "DEBIAN_FRONTEND=noninteractive dpkg -i $old /packages/atelier-libtorch_*.deb"
check "install: and is content with all of it" equal "$(box dpkg --audit)" ""
check "install: the service runs" within 20 is SubState running
check "install: on every boot, with the timer" box systemctl is-enabled atelier.service atelier-cleanup.timer
check "install: the units have nothing to be said about" \
    equal "$(box systemd-analyze verify --man=no atelier.service atelier.socket atelier-cleanup.timer 2>&1)" ""
check "install: no library is missing" \
    equal "$(box ldd /usr/bin/atelier /usr/bin/atelier-worker /usr/bin/atelier-signer | grep 'not found')" ""
check "install: manual pages and completions" box test -s /usr/share/man/man1/atelier-submit.1.gz -a \
    -s /usr/share/bash-completion/completions/atelier
check "doctor: all is well" box runuser -u atelier -- atelier doctor --config $config
box cp /opt/photo.jpg $lib/inbox/.p
box sh -c "chown atelier:atelier $lib/inbox/.p && mv $lib/inbox/.p $lib/inbox/photo.jpg"
published() { box sh -c "test -s $lib/outbox/photo-*.png"; }
check "use: a dropped photo is upscaled" within 100 published

# -------------------------------------------------------------------------------------------------------------- upgrade
box sh -c "echo '[cleanup]
keep_last = 7' >>$config"
before=$(box sh -c "sha256sum $lib/outbox/*.png")
pid=$(show MainPID)
check "upgrade: dpkg takes the next version" install "$new"
check "upgrade: it is that version" equal "$(box dpkg-query -W -f '${Version}' atelier)" "$version+next"
check "upgrade: the service was started again" within 20 is SubState running
check "upgrade: as another process" test "$(show MainPID)" != "$pid"
check "upgrade: the changed configuration is kept" box grep -q 'keep_last = 7' $config
check "upgrade: the outputs are the same" equal "$(box sh -c "sha256sum $lib/outbox/*.png")" "$before"
jobs() { box atelier --config $config jobs list --json | grep -c '"status": "succeeded"'; }
check "upgrade: the job is known" equal "$(jobs)" 1

# --------------------------------------------------------------------------------------------------------------- remove
check "remove: dpkg removes it" box dpkg --remove atelier
refuse "remove: the service is stopped" is ActiveState active
refuse "remove: the programs are gone" box test -e /usr/bin/atelier
check "remove: configuration, database, outputs and photos are kept" box sh -c \
    "test -s $config && test -s $lib/atelier.db && ls $lib/outbox/photo-*.png && ls $lib/inbox/done/photo.jpg"
check "again: a new installation finds all of it" install "$new"
check "again: and runs" within 20 is SubState running
check "again: with the job" equal "$(jobs)" 1

# ---------------------------------------------------------------------------------------------------------------- purge
check "purge: dpkg purges both" box dpkg --purge atelier atelier-libtorch
refuse "purge: configuration and libraries are gone" box sh -c "test -e /etc/atelier || test -e /usr/lib/atelier"
refuse "purge: the database is gone" box test -e $lib/atelier.db
check "purge: pictures are their owner's and stay" box sh -c "ls $lib/outbox/photo-*.png && ls $lib/inbox/done/photo.jpg"
check "purge: no unit is left" equal "$(box systemctl list-unit-files 'atelier*' --no-legend)" ""

[ $failed -eq 0 ] || box journalctl --no-pager -o short-monotonic | grep -i atelier | tail -60
check "power off" box_halt
finish
trap - EXIT
summary
