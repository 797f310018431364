"""Sets up all hosts at once through asyncssh: one process, one thread."""

import asyncio

import asyncssh

import plan


async def set_up(name, address, port):
    connection = asyncssh.connect(
        address,
        int(port),
        username="root",
        client_keys=[f"{plan.directory}/id"],
        known_hosts=f"{plan.directory}/known_hosts",
        agent_path=None,
        config=None,
    )
    async with connection as host:
        for step, *arguments in plan.steps:
            if step == "upload":
                async with host.start_sftp_client() as sftp:
                    await sftp.put(*arguments)
            else:
                done = await host.run(*arguments, check=True)
                if step == "show":
                    print(done.stdout, end="")
    print("done", name)


async def main():
    ended = await asyncio.gather(*(set_up(*host) for host in plan.hosts), return_exceptions=True)
    for error in filter(None, ended):
        print(repr(error))


asyncio.run(main())
