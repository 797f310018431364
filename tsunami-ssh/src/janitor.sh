# Makes a private directory by the first of the templates $@ that can be made, says which it is, and waits until
# whoever started this is gone. Then it removes the directory and ends its own process group.
trap "" HUP INT TERM PIPE
for template; do directory=$(mktemp -d -- "$template") && break; done
if [ -n "$directory" ]; then
    printf %s "$directory"
    exec > /dev/null 2>&1
    read -r _
    # It ignores this itself. A master that is just making its socket could otherwise keep the directory.
    kill -TERM 0
    rm -rf -- "$directory" || rm -rf -- "$directory"
fi
kill -KILL 0
