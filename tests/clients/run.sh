#!/usr/bin/env bash
# Runs the packages that people have (pinned in requirements.txt and package-lock.json), unmodified, against the daemon
# with the stand-in worker. They are installed below the target folder; nothing else stays.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-target}
target=$(mkdir -p "$target/clients" && cd "$target" && pwd)
program=${ATELIER_PROGRAM:-$target/debug/atelier}
missing=()
command -v python3 >/dev/null || missing+=("python3, for the packages openai, replicate and webuiapi")
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=("python3-venv, which makes the place for them")
command -v node >/dev/null || missing+=("node 20 or newer, for the package openai of npm")
command -v openssl >/dev/null || missing+=("openssl, which makes certificates")
command -v npm >/dev/null || missing+=("npm, which installs it")
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && [ -z "${ATELIER_TRIED:-}" ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv nodejs npm openssl >/dev/null &&
            ATELIER_TRIED=1 exec "$0" "$@"
    fi
    printf 'The client tests need %s.\n' "${missing[@]}" >&2
    echo "On Debian or Ubuntu: sudo apt-get install python3-venv nodejs npm openssl" >&2
    exit 1
fi
for file in "$program" "$(dirname "$program")"/atelier-{fake-worker,signer}; do
    [ -x "$file" ] || { echo "$file is missing: run \`cargo build\` and \`cargo build -p atelier-signer\` first." >&2; exit 1; }
done

# Installs once per list of packages.
install() { # stamp, lists…
    local stamp=$1; shift
    local now; now=$(cat "$@" | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || return 1
    echo "$now" >"$stamp.new"
}
venv=$target/clients/venv
if install "$target/clients/python" tests/clients/requirements.txt; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
    mv "$target/clients/python.new" "$target/clients/python"
fi
node=$target/clients/node
if install "$target/clients/npm" tests/clients/package.json tests/clients/package-lock.json; then
    rm -rf "$node" && mkdir -p "$node"
    cp tests/clients/package.json tests/clients/package-lock.json "$node"
    npm ci --prefix "$node" --silent --no-audit --no-fund --ignore-scripts
    mv "$target/clients/npm.new" "$target/clients/npm"
fi

export ATELIER_PROGRAM=$program ATELIER_NODE=$node PYTHONDONTWRITEBYTECODE=1 NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
failed=0
for test in openai replicate webuiapi studio node webhooks provenance c2pa schema; do
    echo "== tests/clients/test_$test.py"
    "$venv/bin/python" -W ignore "tests/clients/test_$test.py" 2>&1 || failed=1
done
exit "$failed"
