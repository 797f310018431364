# host.sh NAME TOKEN CGROUP2 PROGRAM [ARGUMENT ...]
# Becomes the first process of a host of its own, in new namespaces: with a name, files and control groups that no other
# host has. CGROUP2 is where version 2 of them is mounted, or empty.
set -e
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=0700 tsunami-bench /root
mount -t tmpfs -o mode=1777 tsunami-bench /tmp
echo "$2" >/root/token
if [ -n "$3" ]; then
    umount "$3"
    mount -t cgroup2 tsunami-bench "$3"
fi
shift 3
cd /
exec "$@"
