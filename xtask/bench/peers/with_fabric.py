"""Sets up all hosts at once through fabric: a thread a host."""

import fabric
import paramiko

import plan

config = fabric.Config(overrides={"load_ssh_configs": False, "run": {"hide": True, "in_stream": False}})
key = {"key_filename": f"{plan.directory}/id", "allow_agent": False, "look_for_keys": False}


def connection(_name, address, port):
    host = fabric.Connection(address, user="root", port=int(port), config=config, connect_kwargs=key)
    # It would take any key otherwise.
    host.client.load_host_keys(f"{plan.directory}/known_hosts")
    host.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    return host


group = fabric.ThreadingGroup.from_connections(connection(*host) for host in plan.hosts)
for step, *arguments in plan.steps:
    if step == "upload":
        group.put(*arguments)
    else:
        # This raises where one fails.
        done = group.run(*arguments)
        if step == "show":
            print(*(result.stdout for result in done.values()), sep="")
group.close()
for name, _, _ in plan.hosts:
    print("done", name)
