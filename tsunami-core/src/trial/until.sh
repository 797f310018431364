# Repeats the command line $1 until it succeeds. It runs as every command line does.
unset TSUNAMI_SCRIPT
if command -v bash >/dev/null 2>&1; then set -- bash --norc -eo pipefail -c "$1"; else set -- sh -e -c "$1"; fi
until "$@"; do sleep 0.25; done
