#!/bin/sh
# one-script.sh MACHINES
# One ssh a host, all at once, and all of the work as one script: the least that plain ssh can do.
script=$(cat "$BENCH/script")
export script
# shellcheck disable=SC2016 # the inner shell expands it
exec xargs -P "$1" -I{} sh -c '
    ssh -F "$BENCH/ssh_config" "$1" "$script" <"$BENCH/input" && echo "done $1"
' one {} <"$BENCH/names"
