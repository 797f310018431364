"""What each host is set up with, for pyinfra."""

import os

from pyinfra import host
from pyinfra.operations import files, python, server

with open(f"{os.environ['BENCH']}/plan") as file:
    steps = [line.rstrip("\n").split("\t") for line in file]

shown = []
# Operations are told apart by their names.
for number, (step, *arguments) in enumerate(steps):
    name = f"step {number}"
    if step == "upload":
        files.put(name=name, src=arguments[0], dest=arguments[1])
    else:
        done = server.shell(name=name, commands=arguments)
        if step == "show":
            shown.append(done)


def tell():
    print(*(done.stdout for done in shown), f"done {host.name}", sep="\n")


python.call(name="tell", function=tell)
