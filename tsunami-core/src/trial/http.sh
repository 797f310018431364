# Whether a server answers over HTTP, asked with what this machine has.
#
#   wait HOST PORT PATH  waits until the status of its answer is 2xx or 3xx
#   ask HOST PORT PATH   prints the status of its answer; nothing if there is none
#
# HOST is an address as URLs have it.
mode=$1 host=$2 port=$3 path=$4
address=${host#"["}
address=${address%"]"}
# It is asked directly.
unset TSUNAMI_SCRIPT http_proxy HTTP_PROXY all_proxy ALL_PROXY

for tool in curl bash python3 perl wget none; do
    ! command -v "$tool" >/dev/null 2>&1 || break
done
if [ "$tool" = none ]; then
    echo "nothing on this machine asks over HTTP: install curl, wget, bash, python3 or perl, or use \`ready = { port = $port }\`" >&2
    exit 127
fi

# What the tools say of a server that isn't there is no news.
ask() {
    case $tool in
    curl) curl -q -gs --noproxy '*' -m 5 -o /dev/null -w '%{http_code}' "http://$host:$port$path" ;;
    bash)
        bash --norc -c '
            exec 3<>"/dev/tcp/$1/$2" || exit
            printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$4" "$3:$2" >&3
            read -r -t 5 _ status _ <&3
            printf %s "$status"
        ' bash "$address" "$port" "$host" "$path"
        ;;
    python3)
        python3 -c '
import http.client, sys; connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
connection.request("GET", sys.argv[3]); print(connection.getresponse().status)
' "$address" "$port" "$path"
        ;;
    perl)
        perl -MIO::Socket::IP -e '
            alarm 5;
            my $server = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1]) or exit;
            print $server "GET $ARGV[3] HTTP/1.0\r\nHost: $ARGV[2]:$ARGV[1]\r\n\r\n";
            print((split / /, <$server>)[1]);
        ' "$address" "$port" "$host" "$path"
        ;;
    wget)
        # One kind says `ERROR 503`, the other `HTTP/1.1 503`.
        if said=$(LC_ALL=C wget -O /dev/null -T 5 "http://$host:$port$path" 2>&1); then
            echo 200
        else
            printf '%s\n' "$said" |
                sed -n -e 's/.*ERROR \([0-9][0-9][0-9]\).*/\1/p' -e 's/.* HTTP\/1\.[01] \([0-9][0-9][0-9]\).*/\1/p'
        fi
        ;;
    esac 2>/dev/null
}

pauses='0.02 0.05 0.1 0.25'
while :; do
    status=$(ask)
    case $mode:$status in
    ask:000) exit 0 ;;
    ask:*) echo "$status" && exit 0 ;;
    wait:[23]??) exit 0 ;;
    esac
    sleep "${pauses%% *}"
    pauses=${pauses#* }
done
