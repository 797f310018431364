"""The hosts, for pyinfra."""

import os

directory = os.environ["BENCH"]
with open(f"{directory}/hosts") as file:
    lines = [line.split() for line in file]
hosts = (
    [(name, {"ssh_hostname": address, "ssh_port": int(port)}) for name, address, port in lines],
    {
        "ssh_user": "root",
        "ssh_key": f"{directory}/id",
        "ssh_known_hosts_file": f"{directory}/known_hosts",
        "ssh_strict_host_key_checking": "yes",
    },
)
