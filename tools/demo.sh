#!/usr/bin/env bash
# The main jobs on real input: starts the daemon on its defaults, drops a photo into the inbox to be enlarged and once more
# to be edited, follows the jobs, shows what came of them, and stops the daemon.
set -euo pipefail
cd "$(dirname "$0")/.."

atelier=target/release/atelier
photo=tools/demo/chelsea.jpg
# Names of its own, so that a second demonstration is not taken for a duplicate's leftovers.
stamp=$(date +%H%M%S)

# An address of its own, should the usual one be taken.
"$atelier" serve --listen 127.0.0.1:0 --set 'inbox.duplicates="run"' 2>data-demo.log &
daemon=$!
finish() {
    kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true
    rm -f data-demo.log
}
trap finish EXIT
for _ in $(seq 200); do
    [ -f data/daemon.json ] && break
    kill -0 "$daemon" 2>/dev/null || { cat data-demo.log >&2; exit 1; }
    sleep 0.05
done
echo "The daemon runs (pid $daemon) and watches watch-inbox/."

# Drops the photo under a name of its own, waits for the job, and says its id.
drop() {
    local name=$1 sidecar=${2:-}
    [ -n "$sidecar" ] && echo "$sidecar" >"watch-inbox/$name.json"
    # As any program should deliver: under a hidden name first, then renamed.
    cp "$photo" "watch-inbox/.$name.part"
    mv "watch-inbox/.$name.part" "watch-inbox/$name"
    echo "Dropped watch-inbox/$name${sidecar:+ with $sidecar}" >&2
    for _ in $(seq 400); do
        id=$("$atelier" jobs list --source inbox --limit 20 --json |
            python3 -c 'import json,sys; print(next((j["id"] for j in json.load(sys.stdin)["jobs"] if j["source"]["name"] == sys.argv[1]), ""))' "$name")
        [ -n "$id" ] && break
        sleep 0.05
    done
    [ -n "$id" ] || { echo "The photo was not picked up:" >&2; cat data-demo.log >&2; exit 1; }
    "$atelier" jobs watch "$id" >&2
    echo "$id"
}

# What became of a job; fails where the output is not what it should be.
show() {
    "$atelier" jobs show "$1" --json | python3 -c '
import json, os, sys
job = json.load(sys.stdin)
if job["status"] != "succeeded":
    sys.exit("the job is %s: %s" % (job["status"], job["error"]))
source, output = job["inputs"][0], job["outputs"][0]
path = os.path.join("data", "outbox", output["name"])
print("Before  %4d x %-4d  %7d bytes  %s" % (source["width"], source["height"], source["bytes"], sys.argv[1]))
print("After   %4d x %-4d  %7d bytes  %s" % (output["width"], output["height"], output["bytes"], path))
print("Model   %s" % job["model"])
if job["result"]:
    print("Engine  %s, asked for %s" % (job["result"]["engine"], job["result"]["instruction"]))
data = open(path, "rb").read()
exif = b"eXIf" in data and b"Demo Camera" in data
print("EXIF    " + ("kept: the camera is still named in the output" if exif else "LOST"))
sys.exit(0 if exif else 1)
' "$photo"
}

echo
echo "1. An enlargement, as the default preset says"
id=$(drop "chelsea-$stamp.jpg")
show "$id"
command -v exiftool >/dev/null && exiftool -s -Model -DateTimeOriginal -GPSPosition -Orientation "$(ls -t data/outbox/chelsea-*"$id"* | head -1)"
echo
echo "2. An edit by instruction, with what comes along"
id=$(drop "chelsea-night-$stamp.jpg" '{"kind": "edit", "prompt": "make it night"}')
show "$id"
echo
echo "The sources are in watch-inbox/done/, the log was in data/logs/."
