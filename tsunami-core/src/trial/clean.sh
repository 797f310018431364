# Removes what patterns match, so that no trial brings home another's files. They come in several parts, each of which is
# their number, their directory (or ''), and themselves. Only what lies in the machine's own working directory, where
# this begins, is removed: nothing through a link, nothing that is mounted, and nothing that was uploaded. Standard input
# has the names of that: `//./a/file///tmp/absolute//`.
#
# Says a line for each part: `kept` if something that matches stays. Then comes the name of the file by whose time it can
# be told what is newer.
uploaded=$(cat)
cd -P . || exit
base=${PWD%/}
n='
'
IFS= said='' mounts='' began=$base/.tsunami-trial

# Whether a link is on the way to a relative name.
through_a_link() {
    way='' rest=$1
    while [ "$rest" != "${rest#*/}" ]; do
        way=$way${rest%%/*} rest=${rest#*/}
        [ ! -L "$way" ] || return 0
        way=$way/
    done
    return 1
}

# Removes an absolute name without links on its way, except for what is to stay below it.
remove() {
    # Mount points, in which the kernel writes spaces and the like as numbers.
    [ -n "$mounts" ] ||
        mounts=$n$(while IFS=' ' read -r _ at _; do printf '%b\n' "$at"; done </proc/self/mounts 2>/dev/null)$n
    case $uploaded in *"//./${1#"$base/"}//"* | *"//$1//"*) return ;; esac
    case $mounts in *"$n$1$n"*) return ;; esac
    case $mounts$uploaded in
    *"$n$1/"* | *"//./${1#"$base/"}/"* | *"//$1/"*)
        [ ! -L "$1" ] || return 0
        for child in "$1"/* "$1"/.[!.]* "$1"/..?*; do
            if [ -e "$child" ] || [ -L "$child" ]; then remove "$child"; fi
        done
        ;;
    *) rm -rf -- "$1" 2>/dev/null ;;
    esac
}

# Removes what the first $count of the patterns match in $cwd. Says `kept` if something stays.
clean() {
    cd -- "${cwd:-.}" 2>/dev/null || return 0
    here=$(pwd -P) kept=''
    while [ "$count" -gt 0 ]; do
        for name in $1; do
            while [ "$name" != "${name%/}" ]; do name=${name%/}; done
            case $name in '' | . | .. | */. | */..) continue ;; esac
            if [ ! -e "$name" ] && [ ! -L "$name" ]; then continue; fi
            if ! through_a_link "$name"; then
                parent=$here
                case $name in */*) parent=$(cd -- "./${name%/*}" && pwd -P) ;; esac
                parent=${parent%/}
                case $parent/ in "$base"/*) remove "$parent/${name##*/}" ;; esac
            fi
            if [ -e "$name" ] || [ -L "$name" ]; then kept=kept; fi
        done
        count=$((count - 1))
        shift
    done
    printf %s "$kept"
}

while [ $# -gt 0 ]; do
    count=$1 cwd=$2
    shift 2
    said=$said$(clean "$@")$n
    shift "$count"
done
case $said in *kept*) : >"$began" || exit ;; esac
printf '%s%s' "$said" "$began"
