# What the tests in a box say, and how they wait. Sourced by them.

begun=$(date +%s.%N)
passed=0 failed=0
seconds() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }'; }
ok() { passed=$((passed + 1)); echo "PASS [$(seconds "$begun")] $*"; }
bad() { failed=$((failed + 1)); echo "FAIL [$(seconds "$begun")] $*"; }
check() { # what, command: it must succeed
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then ok "$what"; else bad "$what  [$(tr '\n' '|' <<<"$output" | cut -c1-400)]"; fi
}
refuse() { # what, command: it must fail
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then bad "$what  [it succeeded: $(tr '\n' '|' <<<"$output" | cut -c1-400)]"; else ok "$what"; fi
}
within() { # seconds, command: it must succeed by then
    local until=$((SECONDS + $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ $SECONDS -le $until ] || return 1
        sleep 0.05
    done
}
equal() { [ "$1" = "$2" ] || { echo "expected \"$2\", found \"$1\""; return 1; }; }
summary() {
    echo "$passed passed, $failed failed, $(seconds "$begun") s"
    [ $failed -eq 0 ]
}
