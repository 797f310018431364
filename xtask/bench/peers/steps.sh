#!/bin/sh
# steps.sh pssh|clush|bssh PROGRAM MACHINES
# For tools that do one thing on all hosts: a call a step. Whoever fails on one host ends it for all.
kind=$1 program=$2 machines=$3
config="-F $BENCH/ssh_config"
case $kind in bssh)
    mkdir -p "$HOME/.ssh"
    cp "$BENCH/known_hosts" "$HOME/.ssh/known_hosts"
    hosts=$(awk '{ printf "%sroot@%s:%s", separator, $2, $3; separator = "," }' "$BENCH/hosts")
    ;;
esac

bssh() {
    "$program" -H "$hosts" -i "$BENCH/id" --parallel "$machines" --strict-host-key-checking yes \
        --require-all-success "$@"
}

upload() {
    case $kind in
        pssh) "${program%ssh}scp" -h "$BENCH/names" -p "$machines" -t 0 -x "$config" "$1" "$2" ;;
        clush) "$program" -S -n -f "$machines" --hostfile "$BENCH/names" -o "$config" --copy "$1" --dest "$2" ;;
        bssh) bssh upload "$1" "$2" ;;
    esac
}

run() {
    case $kind in
        pssh) "$program" -i -h "$BENCH/names" -p "$machines" -t 0 -x "$config" "$1" ;;
        clush) "$program" -S -n -f "$machines" --hostfile "$BENCH/names" -o "$config" "$1" ;;
        bssh) bssh "$1" ;;
    esac
}

tab=$(printf '\t')
while IFS=$tab read -r step first second; do
    case $step in
        upload) upload "$first" "$second" ;;
        *) run "$first" ;;
    esac </dev/null || exit
done <"$BENCH/plan"
sed 's/^/done /' "$BENCH/names"
