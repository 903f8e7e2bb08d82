# Every script here and in deploy/: shellcheck for shell, ruff for Python, by content and not by name.
need shellcheck shellcheck
need_python ruff ruff

shell=() python=()
while read -r file; do
    case $(head -c 64 "$file" | head -n 1) in
        *bash | *bin/sh) shell+=("$file") ;;
        *python3) python+=("$file") ;;
        *) case $file in *.bash) shell+=("$file") ;; *.py) python+=("$file") ;; esac ;;
    esac
done < <(git -C "$root" ls-files --cached --others --exclude-standard deploy tests/deploy |
    grep -v '^deploy/workflow-node/' | sed "s#^#$root/#")

found() { [ "${#shell[@]}" -ge 14 ] && [ "${#python[@]}" -ge 7 ]; }
check "the scripts are found" found
# What a kind is given by the library it does not see: SC2034, SC2154. Text for another shell or program: SC2016.
# Functions run under `set -e`: SC2164.
linted() { shellcheck --shell=bash --severity=warning --exclude=SC2034,SC2154,SC2016,SC2164 "$@"; }
check "shellcheck has no objection" linted "${shell[@]}"
printf 'rm -rf $1/*\nif [ $x = 1 ]; then echo; fi; local y=$(false)\n' >"$scratch/bad.bash"
refuses "a careless script is objected to" "SC2" linted "$scratch/bad.bash"

ruff() { "$tools/venv/bin/ruff" "$@"; }
judged() { ruff check --isolated --quiet --no-cache --line-length 120 --select E,F,W,B,UP,PLE,RUF100 "$@"; }
check "ruff has no objection" judged "${python[@]}"
check "and nothing to format" ruff format --isolated --no-cache --quiet --line-length 120 --check "${python[@]}"
printf 'import os\ndef f(x=[]):\n    return y\n' >"$scratch/bad.py"
refuses "a careless program is objected to" "F821" judged "$scratch/bad.py"
