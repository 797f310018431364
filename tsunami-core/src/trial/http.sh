# Waits until a server answers over HTTP with a status of 2xx or 3xx, asked with what this machine has.
#
#   HOST PORT PATH   HOST is an address as URLs have it
#
# Prints each other status with which it answers, once.
host=$1 port=$2 path=$3
address=${host#"["}
address=${address%"]"}
# It is asked directly.
unset TSUNAMI_SCRIPT http_proxy HTTP_PROXY all_proxy ALL_PROXY

for tool in curl bash python3 perl wget none; do
    ! command -v "$tool" >/dev/null 2>&1 || break
done
others="install curl, wget, bash, python3 or perl, or use \`ready = { port = $port }\`"
if [ "$tool" = none ]; then
    echo "nothing on this machine asks over HTTP: $others" >&2
    exit 127
fi
# Others than GNU's don't know these, and follow no less.
options=''
[ "$tool" != wget ] || case $(wget --version 2>/dev/null) in *GNU*) options='--no-config --max-redirect=0' ;; esac

# Prints the number of its process and becomes the tool, which prints the line with the status as soon as that is there.
become() {
    # shellcheck disable=SC2016 # these are variables of the other shell
    exec sh -c 'echo "process $$" && exec "$@"' sh "$@"
}
request() {
    case $tool in
    curl) become curl -q -gsN --noproxy '*' -m 5 -o /dev/null -D - "http://$host:$port$path" ;;
    bash)
        # shellcheck disable=SC2016 # these are variables of the other shell
        become bash --norc -c '
            # A server that resets connections while it comes up is asked again.
            trap "" PIPE
            exec 3<>"/dev/tcp/$1/$2" || exit
            printf "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" "$4" "$3:$2" >&3
            read -r -t 5 line <&3
            echo "$line"
        ' bash "$address" "$port" "$host" "$path"
        ;;
    python3)
        become python3 -c '
import http.client, sys; connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
connection.request("GET", sys.argv[3]); print("HTTP/", connection.getresponse().status)
' "$address" "$port" "$path"
        ;;
    perl)
        # shellcheck disable=SC2016 # these are variables of Perl
        become perl -MIO::Socket::IP -e '
            $SIG{ALRM} = sub { exit };
            alarm 5;
            my $server = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1]) or exit;
            print $server "GET $ARGV[3] HTTP/1.0\r\nHost: $ARGV[2]:$ARGV[1]\r\n\r\n";
            print scalar <$server>;
        ' "$address" "$port" "$host" "$path"
        ;;
    wget)
        # shellcheck disable=SC2086 # words
        become wget $options -S -t 1 -T 5 -O /dev/null "http://$host:$port$path"
        ;;
    esac
}

# Prints the status of the answer, which is enough: what follows may have no end. What the tools say of a server that isn't
# there is no news, but that of a tool that dies by itself is.
ask() {
    {
        LC_ALL=C request 2>&1 &
        wait "$!"
        # The tool's last line may have no end.
        printf '\nended %s\n' "$?"
    } 2>/dev/null | while read -r word said _; do
        # Some servers give no reason.
        said=${said%"$return"}
        case $word:$said in
        process:*) process=$said ;;
        HTTP/*:1??) ;;
        HTTP/*:???)
            echo "$said"
            kill "$process" 2>/dev/null
            break
            ;;
        ended:*) [ "$said" -le 128 ] || echo "signal $((said - 128))" ;;
        esac
    done
}

pauses='0.02 0.05 0.1 0.25' last='' return=$(printf '\r')
while :; do
    status=$(ask)
    case $status in
    [23]??) exit 0 ;;
    signal*)
        echo "\`$tool\` of this machine, which was to ask over HTTP, died of $status: $others" >&2
        exit 1
        ;;
    "$last") ;;
    ?*) last=$status && echo "$status" ;;
    esac
    sleep "${pauses%% *}"
    pauses=${pauses#* }
done
