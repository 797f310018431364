#!/bin/sh
# Says what the machine is: the set-up log then explains the results.
echo "$TSUNAMI_NAME at $TSUNAMI_IP"
uname -srm
grep -m1 'model name' /proc/cpuinfo || true
