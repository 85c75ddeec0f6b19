#!/usr/bin/env bash
# The service as an administrator meets it, in a real systemd: installed, started, reloaded, hung, killed, stopped in
# mid-job, cleaned up by its timer, activated by its socket. See box.sh for what it runs in.
#
# usage: run.sh [--binaries DIR] [--libtorch DIR]
#
# Needs builds of atelier, atelier-fake-worker and atelier-worker with debug assertions (`make test-systemd` makes
# them): the hangs are armed through src/failpoint.rs.
set -u
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
binaries=$repo/target/debug
libtorch=${LIBTORCH:-$repo/third_party/libtorch}
while [ $# -gt 0 ]; do
    case $1 in
        --binaries) binaries=$2; shift 2 ;;
        --libtorch) libtorch=$2; shift 2 ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
# shellcheck source=tests/systemd/box.sh
. "$here/box.sh"
# shellcheck source=tests/systemd/checks.sh
. "$here/checks.sh"

# ------------------------------------------------------------------------------------------------------ what they ask
config=/etc/atelier/config.toml
lib=/var/lib/atelier
show() { box systemctl show -P "$1" "${2:-atelier.service}"; }
is() { [ "$(show "$1" "${3:-atelier.service}")" = "$2" ]; }
cli() { box atelier --config $config ${token:+--token "$token"} "$@"; }
journal() { box journalctl -u atelier.service -o cat --no-pager "$@"; }
said() { journal | grep -qF -- "$1"; }
job() { # id, field: `status`, `outputs.0.sha256`
    cli jobs show "$1" --json | python3 -c '
import json, sys
value = json.load(sys.stdin)
for key in sys.argv[1].split("."):
    value = value[int(key) if key.isdigit() else key]
print(value)' "$2" 2>/dev/null
}
job_is() { [ "$(job "$1" "$2")" = "$3" ]; }
passes_step() { [ "$(job "$1" progress.step)" -gt "$2" ]; }
source_id() { # the job of a file in the inbox
    cli jobs list --source inbox --json | python3 -c '
import json, sys
print(next(j["id"] for j in json.load(sys.stdin)["jobs"] if j["source"]["name"] == sys.argv[1]))' "$1" 2>/dev/null
}
# A job that cannot end before something is done to it, on however slow a machine: its steps take what the worker's
# command line says, and the next worker is told of fast ones.
long_job() {
    STEP_MS=300 configure </dev/null
    box systemctl restart atelier.service
    long=$(cli submit --kind generate --seed 3 --steps 100 --prompt "a house")
    within 30 passes_step "$long" 6
    configure </dev/null
}
slow_job() { # steps, ms a step, more clauses
    cli submit --kind generate --seed 3 --steps "$1" --prompt "fake:slow=$2${3:-}|a house"
}
as() { local user=$1; shift; box runuser -u "$user" -- "$@"; }
unit() { # drop-in of the test's own, on standard input
    box sh -c 'mkdir -p /run/systemd/system/atelier.service.d && cat >/run/systemd/system/atelier.service.d/test.conf && systemctl daemon-reload'
}
usual_unit() {
    unit <<'UNIT'
[Unit]
StartLimitBurst=1000
[Service]
WatchdogSec=2s
RestartSec=100ms
UNIT
}
# With the stand-in for the worker, and waits that are short.
configure() { # further keys on standard input; STEP_MS: what a step takes that does not say
    { cat <<TOML; cat; } | box sh -c "cat >$config"
[paths]
data = "/var/lib/atelier"
models = ["/opt/atelier-test/models"]
[inbox]
dir = "/var/lib/atelier/inbox"
settle = "200ms"
sidecar_wait = "50ms"
rescan = "1s"
duplicates = "run"
[checkpoint]
interval = "100ms"
[worker]
command = ["/opt/atelier-test/atelier-fake-worker", "--step-ms", "${STEP_MS:-1}"]
[log]
dir = "/var/log/atelier"
TOML
}

# ---------------------------------------------------------------------------------------------- what they are made of
box_need || exit 1
for program in atelier atelier-worker atelier-fake-worker; do
    [ -x "$binaries/$program" ] || { echo "$binaries/$program is missing: run \`make test-systemd\`" >&2; exit 1; }
done
if [ -d "$libtorch/torch/lib" ]; then
    BOX_BINDS="$(realpath "$libtorch"):/usr/lib/atelier"
elif [ -d "$libtorch/lib" ]; then
    BOX_BINDS="$(realpath "$libtorch"):/usr/lib/atelier/torch"
else
    echo "$libtorch is no libtorch: run \`make libtorch\`" >&2
    exit 1
fi
payload=$(mktemp -d -t atelier-payload.XXXXXX)
# It becomes the box's root.
chmod 755 "$payload"
finish() {
    box_clean
    rm -rf "$payload"
}
trap finish EXIT
trap 'exit 130' INT TERM
host_before=$(box_host_state)
"$repo/tools/install.sh" --destdir "$payload" --prefix /usr --binaries "$binaries" --libtorch none >/dev/null || exit 1
install -D -m 755 "$binaries/atelier-fake-worker" "$payload/opt/atelier-test/atelier-fake-worker"
install -D -m 644 "$repo/tools/demo/chelsea.jpg" "$payload/opt/atelier-test/photo.jpg"
mkdir -p "$payload/opt/atelier-test/models/fake"
echo '{"_class_name": "AtelierFake"}' >"$payload/opt/atelier-test/models/fake/config.json"
printf '\2\0\0\0\0\0\0\0{}' >"$payload/opt/atelier-test/models/fake/model.safetensors"
! command -v strip >/dev/null || strip --strip-debug "$payload"/usr/bin/* "$payload/opt/atelier-test/atelier-fake-worker"

# --------------------------------------------------------------------------------------------------------------- boot
box_boot "$payload" || { echo "FAIL the box does not boot" >&2; exit 1; }
check "boot: nothing has failed" equal "$(box systemctl --failed --no-legend)" ""
# As the package does it.
check "install: the user is made" box systemd-sysusers atelier.conf
check "install: the folders are made" box systemd-tmpfiles --create atelier.conf
box useradd --no-create-home --groups atelier alice
box useradd --no-create-home bob

# ------------------------------------------------------------------------------------------------- what can be judged
units="atelier.service atelier.socket atelier-cleanup.service atelier-cleanup.timer"
check "verify: systemd-analyze has nothing to say about the units" \
    equal "$(for unit in $units; do box systemd-analyze verify --man=no "/usr/lib/systemd/system/$unit" 2>&1; done)" ""
box sh -c 'mkdir -p /etc/systemd/system/atelier.service.d && cp /usr/share/atelier/systemd/cuda.conf /etc/systemd/system/atelier.service.d/ && systemctl daemon-reload'
check "verify: nor about the one for CUDA" equal "$(box systemd-analyze verify --man=no atelier.service 2>&1)" ""
box sh -c 'cd /usr/lib/systemd/system && cat atelier.service ../../../share/atelier/systemd/cuda.conf >/tmp/cuda.service'
box sh -c 'rm -r /etc/systemd/system/atelier.service.d && systemctl daemon-reload'
exposure() { box systemd-analyze security --offline=true --no-pager "$1" | tail -1 | grep -o 'service: [0-9.]*'; }
check "security: at most 1.4 ($(exposure /usr/lib/systemd/system/atelier.service | cut -d' ' -f2))" \
    box systemd-analyze security --offline=true --threshold=14 --no-pager /usr/lib/systemd/system/atelier.service
check "security: at most 1.6 with CUDA ($(exposure /tmp/cuda.service | cut -d' ' -f2))" \
    box systemd-analyze security --offline=true --threshold=16 --no-pager /tmp/cuda.service

# ------------------------------------------------------------- the configuration as installed, with the real worker
usual_unit
t=$(date +%s.%N)
check "start: systemctl start returns" box systemctl start atelier.service
took=$(seconds "$t")
if [ $failed -gt 0 ]; then
    box journalctl --no-pager -o short-monotonic | tail -60
    echo "the service does not start, so nothing else is tried: $passed passed, $failed failed"
    exit 1
fi
check "start: active, never restarted, idle (after ${took} s)" \
    equal "$(show ActiveState)/$(show SubState)/$(show NRestarts)/$(show StatusText)" "active/running/0/idle; 0 waiting"
check "start: it answers at once" cli jobs list
main=$(show MainPID)
check "start: as the user atelier" equal "$(box stat -c %U "/proc/$main")" atelier
check "sandbox: system calls are filtered, no new privileges, CAP_LEASE alone" box sh -c "
    grep -q 'Seccomp:.2' /proc/$main/status && grep -q 'NoNewPrivs:.1' /proc/$main/status &&
    grep -q 'CapEff:.0000000010000000' /proc/$main/status"
check "state: folders and their modes" equal \
    "$(box stat -c '%n %a %U:%G' $lib $lib/inbox $lib/outbox $lib/spool $lib/checkpoints /var/log/atelier | tr '\n' ',')" \
    "$lib 750 atelier:atelier,$lib/inbox 2770 atelier:atelier,$lib/outbox 2750 atelier:atelier,$lib/spool 700 atelier:atelier,$lib/checkpoints 700 atelier:atelier,/var/log/atelier 750 atelier:atelier,"
refuse "state: others do not see it" as bob ls $lib
refuse "state: members of the group do not write the database" as alice sh -c "echo x >>$lib/atelier.db"

t=$(date +%s.%N)
check "upscale: a member of the group drops a photo" as alice cp /opt/atelier-test/photo.jpg $lib/inbox/cat.jpg
within 20 source_id cat.jpg
photo=$(source_id cat.jpg)
within 100 job_is "$photo" status succeeded
check "upscale: done by the real worker under the hardened unit (after $(seconds "$t") s)" \
    equal "$(job "$photo" status) $(job "$photo" outputs.0.width)x$(job "$photo" outputs.0.height)" "succeeded 902x600"
check "upscale: the output is the group's to read" as alice sh -c "head -c 8 $lib/outbox/cat-$photo.png | grep -q PNG"
check "upscale: the photo is in done/, and may be taken away" as alice mv $lib/inbox/done/cat.jpg $lib/inbox/.mine
refuse "inbox: nobody else may drop" as bob cp /opt/atelier-test/photo.jpg $lib/inbox/no.jpg
[ "$(job "$photo" status)" = succeeded ] || journal | tail -20
t=$(date +%s.%N)
# An instruction that takes the network: text encoder, UNet and VAE, with a checkpoint and a preview on the way.
edit=$(cli submit --kind edit --image /opt/atelier-test/photo.jpg --prompt "make it night" --seed 0)
within 150 job_is "$edit" status succeeded
check "edit: done by the real worker under the hardened unit (after $(seconds "$t") s)" equal \
    "$(job "$edit" status) $(job "$edit" model) $(job "$edit" result.engine) $(job "$edit" outputs.0.width)x$(job "$edit" outputs.0.height)" \
    "succeeded tiny-edit diffusion 451x300"
[ "$(job "$edit" status)" = succeeded ] || journal | tail -20
check "doctor: all is well under the service's configuration" as atelier atelier doctor --config $config
check "stop: systemctl stop returns" box systemctl stop atelier.service
check "stop: cleanly" equal "$(show Result)/$(show ActiveState)" success/inactive

# -------------------------------------------------------------------------------------------- files of other users
configure </dev/null
box systemctl start atelier.service
as alice python3 -c '
import os, time
held = open("/var/lib/atelier/inbox/held.jpg", "wb")
held.write(open("/opt/atelier-test/photo.jpg", "rb").read())
held.flush()
while not os.path.exists("/tmp/let-go"): time.sleep(0.05)
held.close()' &
holder=$!
within 10 box test -s $lib/inbox/held.jpg
sleep 0.6
as alice cp /opt/atelier-test/photo.jpg $lib/inbox/whole.jpg
check "inbox: a whole file of another user is taken" within 20 source_id whole.jpg
refuse "inbox: one that its owner still writes is not" source_id held.jpg
box touch /tmp/let-go
wait $holder
check "inbox: it is taken once the owner has closed it" within 20 source_id held.jpg
as alice sh -c "cp /opt/atelier-test/photo.jpg $lib/inbox/.p && chmod 600 $lib/inbox/.p && mv $lib/inbox/.p $lib/inbox/private.jpg"
check "inbox: a file that may not be read is told of" within 20 said private.jpg
check "inbox: and stays where it is" box test -e $lib/inbox/private.jpg
as alice chmod 640 $lib/inbox/private.jpg
check "inbox: and is taken once it may be read" within 20 source_id private.jpg

# -------------------------------------------------------------------------------------------------- status and journal
reference=$(cli submit --kind generate --seed 3 --steps 100 --prompt "a house")
within 20 job_is "$reference" status succeeded
expected=$(job "$reference" outputs.0.sha256)
running=$(slow_job 1000 20)
waiting=$(slow_job 2 1)
within 20 passes_step "$running" 3
tells_status() { [[ "$(show StatusText)" =~ ^"job $running: run step "[0-9]+" of 1000; 1 waiting"$ ]]; }
check "status: says what runs, how far it is and how much waits" within 5 tells_status
cli queue pause >/dev/null
tells_pause() { [[ "$(show StatusText)" == *"1 waiting, paused" ]]; }
check "status: says that the queue is paused" within 5 tells_pause
cli jobs cancel "$running" >/dev/null
cli queue resume >/dev/null
within 20 job_is "$waiting" status succeeded
of_the_job() { journal -g "$waiting" | grep -c -e queued -e running -e 'the job begins' -e succeeded; }
check "journal: the job's id stands in each of its lines, the worker's too" equal "$(of_the_job)" 4

# -------------------------------------------------------------------------------------------------------------- reload
pid=$(show MainPID)
live=0
for n in 1 2 3 4 5; do
    configure <<<"[presets.sketch-$n]
kind = \"generate\""
    box systemctl reload atelier.service && cli submit --preset "sketch-$n" --prompt "a bird" >/dev/null && live=$((live + 1))
done
check "reload: five in a row, each live when systemctl returns" equal $live 5
check "reload: the same process, up and never restarted" \
    equal "$(show MainPID)/$(show SubState)/$(show NRestarts)" "$pid/running/0"
configure <<<'[quue]
max_attempts = 9'
refuse "reload: of a broken configuration fails" box systemctl reload atelier.service
check "reload: and says where it is broken" said "config.toml:"
check "reload: and changes nothing" box atelier --server http://127.0.0.1:8470 submit --preset sketch-5 --prompt "a bird"
check "reload: the service is up" equal "$(show SubState)/$(show MainPID)" "running/$pid"
configure </dev/null

# ------------------------------------------------------------------------------------------------- killed in mid-job
resumed() { # what, job: it ends as if nothing had been
    within 30 job_is "$2" status succeeded
    check "$1: the job goes on from its checkpoint" test "$(job "$2" resumed_from_step)" -ge 5
    check "$1: and ends as if nothing had been" equal "$(job "$2" status)/$(job "$2" outputs.0.sha256)" "succeeded/$expected"
}
long_job
restarts=$(show NRestarts)
box systemctl kill -s KILL --kill-whom=main atelier.service
check "SIGKILL: started again" within 20 is NRestarts $((restarts + 1))
within 20 is SubState running
resumed "SIGKILL" "$long"

# ------------------------------------------------------------------------------------------------------- hung in mid-job
long_job
restarts=$(show NRestarts)
box systemctl kill -s STOP --kill-whom=main atelier.service
check "watchdog: a daemon that stands still is killed and started again" within 30 is NRestarts $((restarts + 1))
check "watchdog: by the watchdog" said "Failed with result 'watchdog'"
within 20 is SubState running
resumed "watchdog" "$long"

# Each part that hangs while all others go on.
handed_in() {
    box timeout 5 atelier --config $config submit --kind generate --seed 3 --steps 100 --prompt "a house" \
        --idempotency-key "hang-${1// /-}" >"$BOX_WORK/id"
}
hang() { # place, part, at which of its hits, what is too long for it to be silent
    unit <<UNIT
[Unit]
StartLimitBurst=1000
[Service]
WatchdogSec=2s
RestartSec=100ms
Environment=ATELIER_FAILPOINTS=$1=hang@$3,$4
UNIT
    STEP_MS=300 configure </dev/null
    box systemctl restart atelier.service
    local restarts id
    restarts=$(show NRestarts)
    # The next start is to be a healthy one.
    usual_unit
    # A daemon that hangs may not answer; the key makes asking again the same as asking once.
    within 60 handed_in "$2"
    id=$(cat "$BOX_WORK/id")
    configure </dev/null
    check "watchdog: the $2 hangs, and is told of" within 30 said "the $2 hangs"
    check "watchdog: the service is started again" within 20 is NRestarts $((restarts + 1))
    within 20 is SubState running
    within 30 job_is "$id" status succeeded
    check "watchdog: and the job is done" equal "$(job "$id" status)/$(job "$id" outputs.0.sha256)" "succeeded/$expected"
}
hang inbox.look scanner 3 liveness.scanner=2000ms
hang queue.progress "running step" 8 liveness.step=2000ms
# It looks every five seconds.
hang queue.fetch fetcher 2 liveness.fetcher=12000ms

# --------------------------------------------------------------------------------------------- stopped in mid-job
unit <<'UNIT'
[Unit]
StartLimitBurst=1000
[Service]
TimeoutStopSec=1s
RestartSec=100ms
UNIT
box systemctl restart atelier.service
# The worker stops only after the step that it is at.
slow=$(cli submit --kind generate --seed 3 --steps 3 --prompt "fake:slow=4000|a house")
within 20 job_is "$slow" status running
within 20 passes_step "$slow" 0
t=$(date +%s.%N)
check "stop: in mid-job returns" box systemctl stop atelier.service
took=$(seconds "$t")
check "stop: cleanly, though the checkpoint took longer than TimeoutStopSec ($took s)" \
    equal "$(show Result)/$(awk -v t="$took" 'BEGIN { print (t > 1.2) }')" success/1
usual_unit
box systemctl start atelier.service
within 20 job_is "$slow" status running
check "stop: no attempt is spent, no crash counted" equal "$(job "$slow" attempt)/$(job "$slow" crashes)" 1/0
within 30 job_is "$slow" status succeeded
check "stop: the job goes on from its checkpoint" test "$(job "$slow" resumed_from_step)" -ge 1

# ------------------------------------------------------------------------------------------------ tokens and cleanup
box sh -c 'umask 077; echo "admin: s3cret" >/etc/atelier/tokens'
configure <<'TOML'
[server]
tokens_file = "<credentials>/tokens"
[cleanup]
every = "365d"
keep_succeeded = "1s"
TOML
box systemctl restart atelier.service
refuse "tokens: without one, nothing is told" box atelier --server http://127.0.0.1:8470 jobs list
token=s3cret
# Root has no credentials of the service; the address and the token are enough.
cli() { box atelier --server http://127.0.0.1:8470 --token s3cret "$@"; }
check "tokens: with the one of root's own file, all is" cli jobs list
old=$(cli submit --kind generate --prompt "a house" --seed 1)
within 20 job_is "$old" status succeeded
sleep 1.1
box sh -c 'mkdir -p /run/systemd/system/atelier-cleanup.timer.d
    printf "[Timer]\nOnCalendar=\nOnActiveSec=1s\nRandomizedDelaySec=0\nAccuracySec=100ms\nPersistent=no\n" >/run/systemd/system/atelier-cleanup.timer.d/test.conf
    systemctl daemon-reload; systemctl start atelier-cleanup.timer'
# 4: there is no such job.
is_gone() { cli jobs show "$old" >/dev/null 2>&1; [ $? = 4 ]; }
check "timer: removes what is past its time, through the running daemon" within 20 is_gone
done_well() { is Result success atelier-cleanup.service && [ -n "$(show LastTriggerUSec atelier-cleanup.timer)" ]; }
check "timer: and the run is recorded as a success" within 10 done_well
cli() { box atelier --config $config "$@"; }
token=
box rm /etc/atelier/tokens
configure </dev/null
box systemctl restart atelier.service
check "tokens: without the file, the service starts" cli jobs list

# ------------------------------------------------------------------------------------------------- socket activation
box systemctl stop atelier.service
box systemctl start atelier.socket
check "socket: a request starts the service" cli jobs list
# The first answer comes a moment before the word that it is ready.
check "socket: it is up" within 10 is SubState running
asked=$(mktemp -p "$BOX_WORK")
box python3 -c '
import time, urllib.request
until, asked, worst = time.time() + 4, 0, 0
while time.time() < until:
    begun = time.time()
    with urllib.request.urlopen("http://127.0.0.1:8470/healthz", timeout=20) as answer:
        assert answer.status == 200
    asked, worst = asked + 1, max(worst, time.time() - begun)
    time.sleep(0.01)
print(asked, "requests, none refused, the slowest took %.2f s" % worst)' >"$asked" 2>&1 &
asking=$!
sleep 0.3
for _ in 1 2 3; do box systemctl restart atelier.service; done
if wait $asking; then ok "socket: three restarts, $(cat "$asked")"; else bad "socket: $(tail -1 "$asked")"; fi
box systemctl stop atelier.socket atelier.service

# ----------------------------------------------------------------------------------------------------- restart limit
configure <<<'[quue]
max_attempts = 9'
refuse "limit: a broken configuration does not start" box systemctl start atelier.service
check "limit: and is not tried again" equal "$(show ActiveState)/$(show ExecMainStatus)" failed/2
configure </dev/null
unit <<'UNIT'
[Unit]
StartLimitBurst=3
[Service]
ExecStart=
ExecStart=/bin/false
RestartSec=50ms
UNIT
box systemctl reset-failed atelier.service
box systemctl start --no-block atelier.service
limited() { box journalctl -u atelier.service -o cat | grep -q 'Start request repeated too quickly'; }
check "limit: a service that ends again and again stays down" within 20 limited
check "limit: as failed" within 10 is ActiveState failed
box sh -c 'rm -r /run/systemd/system/atelier.service.d && systemctl daemon-reload && systemctl reset-failed'
check "enable: on boot, with the timer" box systemctl enable --now atelier.service atelier-cleanup.timer

# --------------------------------------------------------------------------------------------------------- power off
if [ $failed -gt 0 ]; then
    echo "--- the service's journal"
    box journalctl -u atelier.service -u atelier-cleanup.service --no-pager -o short-monotonic | tail -150
fi
check "power off: the service stops with the machine" box_halt
finish
trap - EXIT
check "clean: the machine is as it was" equal "$(box_host_state)" "$host_before"
summary
