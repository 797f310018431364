# shellcheck disable=SC2046,SC2154 # process numbers are split on purpose, and processes.sh sets the rest
# Ends what goes on about a content that machines give each other: the processes with TSUNAMI_SPREAD=$2 and all that
# descend from them. Then removes its directory $1.
marked() {
    grep -lzxF -- "TSUNAMI_SPREAD=$mark" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3
}

find_more() {
    gather $(marked)
}

dir=$1 mark=$2
find_more
if ! end_all; then
    echo "these processes do not end: $left" >&2
    exit 1
fi
rm -rf -- "$dir"
