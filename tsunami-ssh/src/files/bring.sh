# A further channel of a download: brings what the script that packs writes into the named pipe $1.
mkfifo -- "$1" && exec cat -- "$1"
