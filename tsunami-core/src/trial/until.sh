# Repeats the command line $1 until it succeeds: soon at first, then four times a second. It runs as every command line
# does.
unset TSUNAMI_SCRIPT
if command -v bash >/dev/null 2>&1; then set -- bash --norc -eo pipefail -c "$1"; else set -- sh -e -c "$1"; fi
pauses='0.02 0.05 0.1 0.25'
until "$@"; do
    sleep "${pauses%% *}"
    pauses=${pauses#* }
done
