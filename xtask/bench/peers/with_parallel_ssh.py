"""Sets up all hosts at once through parallel-ssh: libssh2 and greenlets. It checks no host keys, and can't."""

from gevent import joinall
from pssh.clients import ParallelSSHClient

import plan

names = {address: name for name, address, _ in plan.hosts}
client = ParallelSSHClient(
    list(names),
    user="root",
    port=int(plan.hosts[0][2]),
    pkey=f"{plan.directory}/id",
    pool_size=len(names),
    allow_agent=False,
    identity_auth=False,
)
for step, *arguments in plan.steps:
    if step == "upload":
        joinall(client.copy_file(*arguments), raise_error=True)
        continue
    outputs = client.run_command(*arguments)
    client.join(outputs)
    for output in outputs:
        lines = list(output.stdout)
        if step == "show":
            print(*lines, sep="\n")
        if output.exit_code != 0:
            names.pop(output.host, None)
for name in names.values():
    print("done", name)
