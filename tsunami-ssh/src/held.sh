# shellcheck disable=SC2086,SC3013 # fields are split on purpose, -ef is in POSIX since 2024
# Whether something may hold the outputs, the descriptors 1 and 3, of a shell of tsunami's. Scripts that ask begin with
# this.
# Sets _state, _parent and _began of a process.
_look_at() {
    IFS= read -r _stat <"/proc/$1/stat" || return
    set -- ${_stat##*) }
    _state=$1 _parent=$2 _began=${20}
}
# Whether a process is a stranger's: it descends from one that began before this shell and is not above it. What
# this shell has started descends from it, or was adopted, which only process 1 and what is above it do. One
# that has ended is nobody's.
_is_strangers() {
    _ancestor=$1
    if [ -z "$_above" ]; then
        _look_at "$$" || return
        _since=$_began _found=" 0 1 $$ "
        while [ "$_parent" -gt 1 ]; do
            _found="$_found$_parent "
            _look_at "$_parent" || return
        done
        _above=$_found
    fi
    while :; do
        case $_above in *" $_ancestor "*) return 1 ;; esac
        _look_at "$_ancestor" || return
        case $_ancestor:$_state in "$1":[ZX]) return 0 ;; esac
        [ "$_began" -ge "$_since" ] || return 0
        _ancestor=$_parent
    done
}
# Whether one of the processes that began after process $1 may hold them. In doubt it does. It takes no fork.
_is_held_after() {
    read -r _ _ _ _ _newest </proc/loadavg || return 0
    [ "$_newest" -ge "$1" ] && [ $((_newest - $1)) -le 4096 ] || return 0
    _other=$1 _above=
    while [ "$_other" -lt "$_newest" ]; do
        _other=$((_other + 1))
        [ -e "/proc/$_other" ] || continue
        if [ ! -r "/proc/$_other/fd" ]; then
            _is_strangers "$_other" || [ ! -e "/proc/$_other/fd" ] || return 0
            continue
        fi
        for _file in "/proc/$_other/fd/"*; do
            [ "$_file" -ef /proc/self/fd/1 ] || [ "$_file" -ef /proc/self/fd/3 ] || continue
            # Whoever only reads it is sshd; and by now it may be gone.
            _flags=
            { read -r _ _ && read -r _ _flags; } <"/proc/$_other/fdinfo/${_file##*/}"
            case $_flags in *0) ;; *) [ ! -e "$_file" ] || return 0 ;; esac
        done
    done
    return 1
}
