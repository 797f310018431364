# shellcheck disable=SC2046 # the name of a user is one word
# How machines give each other what was uploaded to one of them. $1 says what to do, $2 is a directory of this content's
# own, which is private and removed by withdraw.sh.
#
#   keep DIRECTORY KIB UNPACK…       unpacks standard input, and keeps it as it came where there is room for it
#   offer DIRECTORY DIGEST ADDRESS KEY PORT…
#                                    starts an sshd of this user's at the address, on one of the ports, that gives what
#                                    was kept to who has the key, and does nothing else. Standard input is its host key.
#                                    Says the port and the user. With a digest, what was kept is checked first.
#   take DIRECTORY KIB DIGEST ADDRESS PORT USER HOST_KEY UNPACK…
#                                    gets it from there, checks it, and unpacks it. Standard input is the key.
#
# UNPACK is the script that unpacks an upload, with its arguments.
mode=$1 dir=$2
shift 2

# Makes the directory anew, if there is room for so many KiB beside it.
begin() {
    rm -rf -- "$dir"
    df -Pk . | {
        read -r _
        read -r _ _ _ free _
        [ "$free" -ge "$1" ]
    } 2>/dev/null && mkdir -m 700 -- "$dir"
}

unpack() {
    script=$1
    shift
    sh -c "$script" sh "$@"
}

is_whole() {
    [ "$(sha256sum <"$dir/content")" = "$1  -" ] || {
        echo 'what was kept is not what was sent' >&2
        return 1
    }
}

keep() {
    if command -v tee >/dev/null && begin "$1"; then
        shift
        # The one may fail, or the other be done, before all has been read.
        tee "$dir/content" | { unpack "$@" && cat >/dev/null; }
    else
        shift
        unpack "$@"
    fi
}

offer() {
    digest=$1 address=$2 key=$3 user=$(id -un)
    shift 3
    [ -z "$digest" ] || is_whole "$digest" || return
    cd -- "$dir" || return
    case $PWD in *[!A-Za-z0-9/._-]*)
        echo "sshd can't be given the path $PWD" >&2
        return 1
        ;;
    esac
    umask 077
    cat >host_key
    echo "restrict,command=\"exec cat $PWD/content\" $key" >authorized_keys
    sshd=$(PATH=$PATH:/usr/sbin:/usr/local/sbin:/sbin command -v sshd) || {
        echo 'it has no sshd' >&2
        return 1
    }
    # Root's account may be locked, which only PAM overlooks.
    pam=no
    [ "$(id -u)" != 0 ] || ! grep -q "^$user:!" /etc/shadow 2>/dev/null || pam=yes
    for port; do
        cat >sshd_config <<END
Port $port
ListenAddress $address
HostKey $PWD/host_key
AuthorizedKeysFile $PWD/authorized_keys
AllowUsers $user
AuthenticationMethods publickey
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM $pam
StrictModes no
PidFile none
DisableForwarding yes
PermitTTY no
PermitTunnel no
PermitUserRC no
MaxSessions 1
MaxAuthTries 1
LoginGraceTime 10
ClientAliveInterval 5
PrintMotd no
PrintLastLog no
SetEnv SHLVL=1
END
        # The shell above it has an environment by which it is found: sshd overwrites its own.
        setsid sh -c '"$@"; echo over' sh "$sshd" -D -e -f "$PWD/sshd_config" </dev/null >log 2>&1 &
        tries=0
        until grep -q '^Server listening' log; do
            if grep -qx over log || [ $tries -gt 50 ]; then continue 2; fi
            tries=$((tries + 1))
            sleep 0.1
        done
        echo "$port $user"
        return
    done
    tail -n 3 log >&2
    return 1
}

take() {
    digest=$2 address=$3 port=$4 user=$5 host_key=$6
    begin "$1" || {
        echo 'there is no room for it' >&2
        return 1
    }
    shift 6
    command -v ssh >/dev/null || {
        echo 'it has no ssh' >&2
        return 1
    }
    (
        umask 077
        cd -- "$dir" && cat >key && echo "source $host_key" >known_hosts || exit
        ssh -F none -T -n -i ./key -l "$user" -p "$port" -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none \
            -o PreferredAuthentications=publickey -o UserKnownHostsFile=./known_hosts -o HostKeyAlias=source \
            -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o UpdateHostKeys=no -o LogLevel=ERROR \
            -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ClearAllForwardings=yes -o ControlPath=none \
            -o Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr -- "$address" send >content
        status=$?
        rm -f key known_hosts
        exit $status
    ) && is_whole "$digest" && unpack "$@" <"$dir/content"
}

$mode "$@"
