# Whether the server that a step has started has come up. Reads the kernel's tables: a connection would disturb a server
# that takes only one.
#
#   list PORT ADDRESSES NAME TRIAL STEP
#                    prints the addresses at which somebody listens on the port (in hexadecimal), as the kernel writes them,
#                    each with who does: `step`, `stranger`, or `unknown` where nobody shows it
#   wait PORT ADDRESSES NAME TRIAL STEP
#                    says `looked` once it knows which sockets there are, then waits until a process of that step's
#                    listens on it where others can reach it: of the loopback only ADDRESSES, as the kernel writes them,
#                    are the machine's. Where nobody shows whose a socket is, as with another user's or with a process
#                    that has written over its environment, it is one that was not there before.
#                    Prints the address that it listens on, as the kernel writes it.
mode=$1 port=$2 own=" $3 " name=$4 trial=$5 step=$6

# Sets sockets: ` address:number address:number `.
look() {
    sockets=' '
    while read -r _ local _ state _ _ _ _ _ number _; do
        case $state:${local##*:} in "0A:$port") sockets="$sockets${local%:*}:$number " ;; esac
    done <<EOT
$(grep -h ' 0A ' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
EOT
}

# Prints those of the sockets whose processes can be seen: `number:process`. All other files are left out before `read`,
# which takes each byte by itself.
owners() {
    set -- -e /proc/
    for socket in $sockets; do set -- "$@" -e "socket:[${socket##*:}]"; done
    # shellcheck disable=SC2010 # these names are numbers, and no find tells what a link is in all systems
    ls -l /proc/[0-9]*/fd 2>/dev/null | grep -F "$@" | while read -r line; do
        case $line in
        /proc/*:) process=${line#/proc/} process=${process%%/*} ;;
        *'socket:['*)
            number=${line##*'socket:['} number=${number%]}
            case $sockets in *":$number "*) echo "$number:$process" ;; esac
            ;;
        esac
    done
}

# Whether a process, or one that it descends from, is marked as the step's.
is_the_steps() {
    process=$1
    while [ "${process:-0}" -gt 1 ]; do
        marks=$(grep -zxFc -e "TSUNAMI_RUN_ID=$TSUNAMI_RUN_ID" -e "TSUNAMI_NAME=$name" -e "TSUNAMI_TRIAL=$trial" \
            -e "TSUNAMI_STEP=$step" "/proc/$process/environ" 2>/dev/null)
        [ "$marks" != 4 ] || return 0
        { read -r line <"/proc/$process/stat"; } 2>/dev/null || return 1
        # shellcheck disable=SC2086 # fields
        set -- ${line##*) }
        process=$2
    done
    return 1
}

# Whether a process has written over its environment, as servers do that show what they do in place of their arguments. Any
# other has a PATH.
shows_nobody() {
    ! grep -zq '^PATH=' "/proc/$1/environ" 2>/dev/null
}

# Whether an address is the machine's: all are but those of the loopback, which several machines share.
is_own() {
    case ${1#0000000000000000FFFF0000} in ??????7F | 00000000000000000000000001000000) ;; *) return 0 ;; esac
    case $own in *" ${1#0000000000000000FFFF0000} "*) return 0 ;; esac
    return 1
}

# Ends with where the socket of this number listens, if others can reach it there.
found() {
    for socket in $sockets; do
        case $socket in *":$1") ! is_own "${socket%:*}" || { echo "${socket%:*}" && exit 0; } ;; esac
    done
}

look
if [ "$mode" = list ]; then
    owned=" $(owners | tr '\n' ' ')"
    for socket in $sockets; do
        whose=unknown
        for owner in $owned; do
            [ "${owner%:*}" = "${socket##*:}" ] || continue
            if is_the_steps "${owner#*:}"; then
                whose=step
                break
            fi
            shows_nobody "${owner#*:}" || whose=stranger
        done
        echo "${socket%:*} $whose"
    done
    exit 0
fi
before=$sockets pauses='0.01 0.02 0.05'
echo looked
while :; do
    look
    if [ "$sockets" != ' ' ]; then
        owned=" $(owners | tr '\n' ' ')"
        anonymous=' '
        for owner in $owned; do
            ! is_the_steps "${owner#*:}" || found "${owner%:*}"
            ! shows_nobody "${owner#*:}" || anonymous="$anonymous${owner%:*} "
        done
        for socket in $sockets; do
            case $owned in *" ${socket##*:}:"*)
                case $anonymous in *" ${socket##*:} "*) ;; *) continue ;; esac
                ;;
            esac
            case $before in *":${socket##*:} "*) continue ;; esac
            found "${socket##*:}"
        done
        sleep 0.15
    fi
    sleep "${pauses%% *}"
    pauses=${pauses#* }
done
