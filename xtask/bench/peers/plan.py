"""What the scripts beside this one are told: which hosts there are, and what each is set up with."""

import os

directory = os.environ["BENCH"]


def read(name):
    with open(f"{directory}/{name}") as file:
        return file.read().splitlines()


# Each a name, an address and a port.
hosts = [line.split(" ") for line in read("hosts")]

# Each "upload", a file and what it is to be called; or "run" or "show" and a command.
steps = [line.split("\t") for line in read("plan")]
