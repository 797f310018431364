# Makes a private directory by the first of the templates $@ that can be made, says which it is, and waits until
# whoever started this is gone. Then it ends the process groups that are noted in the directory, removes that, and ends
# its own process group.
trap "" HUP INT TERM PIPE
for template; do directory=$(mktemp -d -- "$template") && break; done
if [ -n "$directory" ]; then
    printf %s "$directory"
    exec > /dev/null 2>&1
    read -r _
    # Processes of the controller's own that have a group each.
    for group in "$directory"/group-*; do
        [ -e "$group" ] && kill -KILL "-${group##*-}"
    done
    # It ignores this itself. A master that is just making its socket could otherwise keep the directory.
    kill -TERM 0
    rm -rf -- "$directory" || rm -rf -- "$directory"
fi
kill -KILL 0
