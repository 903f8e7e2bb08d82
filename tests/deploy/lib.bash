# What every kind of check is written with: two ways to ask, one count, tools by name.
#
# `check SENTENCE COMMAND…` passes when the command succeeds. `refuses SENTENCE PATTERN COMMAND…` passes when it fails
# *and* says something that matches PATTERN: a control that shows the check can fail, and for the reason it should.
# A command may be a function; it runs in a subshell under `set -e`. A missing tool is installed by name; where that
# fails, the whole run fails: nothing is ever skipped.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/tests/deploy
deploy=$root/deploy
passed=0
failed=0
scratch_root=$(mktemp -d "${TMPDIR:-/tmp}/egressd-deploy.XXXXXX")
# Names of network namespaces carry this, so that two runs on one machine do not meet.
run=ed$$
tools=${EGRESSD_TEST_TOOLS:-${CARGO_TARGET_DIR:-$root/target}/deploy-tools}
at_exit=()

finish() {
    local status=$? command
    for command in "${at_exit[@]}"; do
        eval "$command" >/dev/null 2>&1 || true
    done
    rm -rf "$scratch_root"
    return "$status"
}
trap finish EXIT

outcome() { # outcome ok|FAIL SENTENCE [OUTPUT]
    printf '%-4s  %s: %s\n' "$1" "$kind" "$2"
    if [ "$1" = ok ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        [ -z "${3:-}" ] || printf '%s\n' "$3" | head -n 60 | sed 's/^/      /'
    fi
}

run_strictly() { # its output into $output, its status into $status
    set +e
    output=$(set -euo pipefail; "$@" 2>&1)
    status=$?
    set -e
}

check() {
    local sentence=$1 output status
    shift
    run_strictly "$@"
    if [ "$status" -eq 0 ]; then
        outcome ok "$sentence"
    else
        outcome FAIL "$sentence" "exit $status: $*"$'\n'"$output"
    fi
}

refuses() {
    local sentence=$1 pattern=$2 output status
    shift 2
    run_strictly "$@"
    if [ "$status" -eq 0 ]; then
        outcome FAIL "$sentence" "exit 0, expected a refusal: $*"$'\n'"$output"
    elif ! grep -qE -- "$pattern" <<<"$output"; then
        outcome FAIL "$sentence" "refused (exit $status), but not with /$pattern/: $*"$'\n'"$output"
    else
        outcome ok "$sentence"
    fi
}

# How long anything may take before a check gives up on it, in seconds: a busy machine is no failure.
patience=180

in_time() { # in_time COMMAND…: until it succeeds
    local limit=$((SECONDS + patience))
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$limit" ]; then "$@"; return 1; fi
        read -r -t 0.2 <> <(:) || true
    done
}

# started COMMAND…: in the background, until the end of the run; back with its first line in $line.
started() {
    local pipe=$scratch/started-${#at_exit[@]}
    mkfifo "$pipe"
    "$@" >"$pipe" 2>"$pipe.log" &
    at_exit+=("kill $!")
    line=
    read -r -t "$patience" line <"$pipe" || { cat "$pipe.log"; return 1; }
}

need() { # need COMMAND PACKAGE: a Debian package, installed where the command is missing
    local command=$1 package=$2
    PATH=$PATH:/usr/sbin:/sbin
    command -v "$command" >/dev/null && return
    if [ -z "${apt_updated:-}" ]; then
        apt-get update -qq >/dev/null
        apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 "$package" >/dev/null
    command -v "$command" >/dev/null || { echo "$command is missing and $package does not bring it" >&2; exit 1; }
}

need_python() { # need_python COMMAND PACKAGE…: PyPI packages in a virtual environment that the tests share
    venv=$tools/venv needed "$@"
}
need_alone() { # need_alone COMMAND PACKAGE…: in one of its own, for what does not get on with the others
    venv=$tools/venv-$1 needed "$@"
}
needed() {
    local command=$1 package
    shift
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    for package in "$@"; do
        [ -e "$venv/$package.installed" ] && continue
        "$venv/bin/pip" install -q --disable-pip-version-check "$package"
        touch "$venv/$package.installed"
    done
    [ -x "$venv/bin/$command" ] || { echo "$* does not bring $command" >&2; exit 1; }
}

python() { "$tools/venv/bin/python" "$@"; }

# The appliance itself, in $egressd: the one that EGRESSD_BIN names, or a debug build.
need_egressd() {
    egressd=${EGRESSD_BIN:-}
    if [ -z "$egressd" ]; then
        cargo build --quiet --manifest-path "$root/Cargo.toml" --bin egressd
        egressd=${CARGO_TARGET_DIR:-$root/target}/debug/egressd
    fi
    [ -x "$egressd" ] || { echo "$egressd is no program: EGRESSD_BIN names it" >&2; exit 1; }
}
