# Writes what it reads to the file $1, whole or not at all. It has $2 bytes.
set -e
die() {
    printf '%s\n' "$1" >&2
    exit 1
}
case $1 in
*/) die "$1 names a directory" ;;
*/*) mkdir -p -- "${1%/*}/" ;;
esac
[ ! -d "$1" ] || die "$1 is a directory"
new=$1.tsunami-$$
trap 'rm -f -- "$new"' EXIT
trap 'exit 143' HUP INT TERM
# Nobody else may have put a link there.
(set -C && : >"$new")
# With the mode of the file that it replaces.
[ ! -f "$1" ] || cp -p -- "$1" "$new"
cat >"$new"
[ "$(wc -c <"$new")" -eq "$2" ] || die "only a part has arrived"
mv -f -- "$new" "$1"
