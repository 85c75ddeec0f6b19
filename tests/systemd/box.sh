# A machine in a box: a real systemd as PID 1 of fresh namespaces, over a throw-away overlay of this machine's own root.
# Sourced by the tests beside it.
#
# Needs root, a kernel with overlayfs and cgroup2 (beside v1 will do), util-linux and systemd; no image, no network, no
# virtual machine. It boots in half a second and leaves nothing behind: its files are a tmpfs in a private mount
# namespace, and its processes die with this script.
#
#   box_need            says what is missing, and fails
#   box_boot PAYLOAD    boots; PAYLOAD lies over the root. BOX_BINDS: "SRC:DST …", mounted read-only
#   box CMD…            runs a command inside
#   box_halt            shuts it down as a machine is shut down
#   box_clean           removes what is left; also after a failure

BOX_INIT= BOX_OUTER= BOX_WORK= BOX_NAME=
BOX_BINDS=${BOX_BINDS:-}
BOX_ROOT=${BOX_ROOT:-/}

box_need() {
    local missing=() command
    for command in unshare nsenter setpriv pivot_root mount setsid runuser awk; do
        command -v "$command" >/dev/null || missing+=("$command")
    done
    [ -x "${BOX_ROOT%/}/lib/systemd/systemd" ] || missing+=("${BOX_ROOT%/}/lib/systemd/systemd")
    grep -qw overlay /proc/filesystems || missing+=("overlayfs in the kernel")
    grep -qw cgroup2 /proc/filesystems || missing+=("cgroup2 in the kernel")
    [ "$(id -u)" = 0 ] || missing+=("root's rights")
    if [ ${#missing[@]} -eq 0 ] && ! unshare --mount --pid --fork --uts --ipc --net true 2>/dev/null; then
        missing+=("the right to make namespaces (CAP_SYS_ADMIN)")
    fi
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "systemd cannot be tested here. Missing:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    return 1
}

# What a careless box could change for the whole machine.
box_host_state() {
    stat -c '%n %a %u %g' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/console /dev/ptmx 2>/dev/null || true
    grep -s . /proc/sys/fs/protected_* /proc/sys/kernel/{core_pattern,hostname,pid_max,sysrq} /proc/sys/vm/{overcommit_memory,max_map_count} || true
    cut -d' ' -f5 /proc/self/mountinfo
}

box_boot() {
    BOX_WORK=$(mktemp -d -t atelier-box.XXXXXX)
    BOX_NAME=$(basename "$BOX_WORK")
    export BOX_WORK BOX_NAME BOX_BINDS BOX_ROOT BOX_PAYLOAD=$1
    box_write_stages
    # Should this script be killed, the box dies too.
    setsid setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --uts --ipc --net \
        bash "$BOX_WORK/stage1.sh" >"$BOX_WORK/boot.log" 2>&1 </dev/null &
    BOX_OUTER=$!
    local _
    for _ in $(seq 200); do
        if [ ! -d "/proc/$BOX_OUTER" ]; then
            cat "$BOX_WORK/boot.log" >&2
            return 1
        fi
        BOX_INIT=$(tr -d ' ' <"/proc/$BOX_OUTER/task/$BOX_OUTER/children" 2>/dev/null || true)
        if [ -n "$BOX_INIT" ] && [ "$(cat "/proc/$BOX_INIT/comm" 2>/dev/null)" = systemd ] &&
            [ -S "/proc/$BOX_INIT/root/run/systemd/private" ]; then
            timeout 60 env -i PATH="$PATH" nsenter -t "$BOX_INIT" -m -u -i -n -p -C -r -w -- systemctl is-system-running --wait || true
            return 0
        fi
        sleep 0.05
    done
    cat "$BOX_WORK/boot.log" >&2
    return 1
}

box() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb SYSTEMD_PAGER= LC_ALL=C.UTF-8 \
        nsenter -t "$BOX_INIT" -m -u -i -n -p -C -r -w -- "$@"
}

box_halt() {
    kill -s RTMIN+3 "$BOX_INIT"
    local _
    for _ in $(seq 400); do
        [ -d "/proc/$BOX_INIT" ] || return 0
        sleep 0.05
    done
    return 1
}

box_clean() {
    [ -n "$BOX_WORK" ] || return 0
    if [ -n "$BOX_OUTER" ] && [ -d "/proc/$BOX_OUTER" ]; then
        kill -KILL "$BOX_OUTER" 2>/dev/null || true
    fi
    [ -z "$BOX_OUTER" ] || wait "$BOX_OUTER" 2>/dev/null || true
    # The control group is removed where it was made: in a mount of its own.
    unshare --mount --propagation private bash -c '
        mkdir -p "$BOX_WORK/cg" && mount -t cgroup2 cgroup2 "$BOX_WORK/cg" || exit 0
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            [ -d "$BOX_WORK/cg/$BOX_NAME" ] || exit 0
            find "$BOX_WORK/cg/$BOX_NAME" -depth -type d -exec rmdir {} + 2>/dev/null
            sleep 0.1
        done
        echo "the control group $BOX_NAME is left behind" >&2'
    rm -rf "$BOX_WORK"
    BOX_WORK=
}

box_write_stages() {
    cat >"$BOX_WORK/stage1.sh" <<'STAGE'
set -e
mount --make-rprivate /
mkdir -p "$BOX_WORK/cg"
mount -t cgroup2 cgroup2 "$BOX_WORK/cg"
mkdir "$BOX_WORK/cg/$BOX_NAME"
echo 0 >"$BOX_WORK/cg/$BOX_NAME/cgroup.procs"
# No fork: still PID 1, now at the root of a cgroup namespace of its own.
exec unshare --cgroup bash "$BOX_WORK/stage2.sh"
STAGE
    cat >"$BOX_WORK/stage2.sh" <<'STAGE'
set -e
umount "$BOX_WORK/cg"
mkdir -p "$BOX_WORK/t"
mount -t tmpfs -o size=4g,mode=755 box "$BOX_WORK/t"
mkdir "$BOX_WORK"/t/{up,wk,root}
R=$BOX_WORK/t/root
mount -t overlay overlay -o "lowerdir=$BOX_ROOT,upperdir=$BOX_WORK/t/up,workdir=$BOX_WORK/t/wk" "$R"
read_only() {
    [ -e "$1" ] || return 0
    mount --bind "$1" "$1"
    mount -o remount,bind,ro,nosuid,nodev,noexec "$1"
}
# The knobs in /proc/sys are the whole machine's.
mount -t proc -o nosuid,nodev,noexec proc "$R/proc"
read_only "$R/proc/sys"
read_only "$R/proc/sysrq-trigger"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$R/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup"
# Devices are made anew: systemd changes the mode of /dev/console, and through a bind mount that would be the machine's.
mount -t tmpfs -o mode=755,nosuid dev "$R/dev"
mkdir "$R/dev/pts" "$R/dev/shm"
device() { mknod -m "$2" "$R/dev/$1" c "$3" "$4"; }
device null 666 1 3
device zero 666 1 5
device full 666 1 7
device random 666 1 8
device urandom 666 1 9
device tty 666 5 0
device console 600 1 3
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$R/dev/shm"
ln -s /proc/self/fd "$R/dev/fd"
for i in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${i%:*}" "$R/dev/${i#*:}"; done
mount -t tmpfs -o mode=755,nosuid,nodev run "$R/run"
# What is bound may lie below /tmp, so that goes first.
for bind in $BOX_BINDS; do
    mkdir -p "$R${bind#*:}"
    mount --rbind "${bind%%:*}" "$R${bind#*:}"
    mount -o remount,bind,ro "$R${bind#*:}"
done
mount -t tmpfs -o mode=1777,nosuid,nodev tmp "$R/tmp"
# This machine's own services are none of ours.
U=$R/etc/systemd/system
rm -rf "$U"
mkdir -p "$U"
for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-udev-trigger systemd-logind console-getty getty@ \
    systemd-remount-fs systemd-binfmt systemd-timesyncd systemd-networkd systemd-resolved systemd-update-utmp \
    systemd-pcrphase systemd-pcrphase-sysinit; do ln -s /dev/null "$U/$unit.service"; done
for unit in dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
    proc-sys-fs-binfmt_misc.automount systemd-initctl.socket systemd-journald-audit.socket; do
    ln -s /dev/null "$U/$unit"
done
rm -f "$R/etc/fstab" "$R/etc/hostname" "$R/etc/machine-id"
echo box >"$R/etc/hostname"
tr -d - </proc/sys/kernel/random/uuid >"$R/etc/machine-id"
cp -a "$BOX_PAYLOAD/." "$R/"
cd "$R"
mkdir -p run/old
pivot_root . run/old
# Shared, as a container's manager leaves it: systemd passes credentials on by mounts that services must see.
exec chroot . /bin/sh -c 'umount -l /run/old; rmdir /run/old; mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=box \
    setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-mac_admin,-mac_override,-wake_alarm \
    /lib/systemd/systemd --system --show-status=0 --log-target=journal --default-standard-output=journal systemd.unit=multi-user.target'
STAGE
}
