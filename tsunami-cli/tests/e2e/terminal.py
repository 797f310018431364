# Somebody at a terminal: runs the words after the first on a pseudo-terminal, and does there what the first says, which is
# JSON: ["expect", TEXT], ["send", TEXT], ["size", ROWS, COLUMNS]. Prints what was seen, and ends as the words do.
import fcntl, json, os, pty, select, struct, sys, termios, time

steps, words = json.loads(sys.argv[1]), sys.argv[2:]
child, terminal = pty.fork()
if child == 0:
    os.execvp(words[0], words)
seen = b""


def read():
    if not select.select([terminal], [], [], 0.1)[0]:
        return True
    global seen
    try:
        some = os.read(terminal, 4096)
    except OSError:
        some = b""
    seen += some
    sys.stdout.write(some.decode(errors="replace"))
    return some != b""


for step, *what in steps:
    if step == "size":
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *what, 0, 0))
    elif step == "send":
        os.write(terminal, what[0].encode())
    else:
        deadline = time.monotonic() + 60
        while what[0].encode() not in seen:
            if not read() or time.monotonic() > deadline:
                sys.exit(f"it did not say {what[0]!r}")
        seen = seen.split(what[0].encode(), 1)[1]
while read():
    pass
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status if status >= 0 else 128 - status)
