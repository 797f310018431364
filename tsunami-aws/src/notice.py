# Waits for EC2's notice that it takes this spot machine back, and prints it. Ends without one where there will be
# none. In Python because cloud-init is, and because one process that sleeps disturbs an experiment least.
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request

GIVEN = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
# The second is for machines without IPv4.
SERVICES = [GIVEN] if GIVEN else ["http://169.254.169.254", "http://[fd00:ec2::254]"]
# It answers this machine only, so no proxy may be asked.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# EC2 gives two minutes' notice, and advises to look every five seconds.
PAUSE = 5


def ask(method, path, headers):
    request = urllib.request.Request(SERVICES[0] + "/latest/" + path, method=method, headers=headers)
    with OPENER.open(request, timeout=2) as answer:
        return answer.read().decode()


def metadata(path):
    token = ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    return ask("GET", "meta-data/" + path, {"X-aws-ec2-metadata-token": token})


while True:
    try:
        if metadata("instance-life-cycle") != "spot":
            sys.exit()
        break
    except (OSError, http.client.HTTPException):
        SERVICES.reverse()
        time.sleep(PAUSE)

while True:
    try:
        notice = json.loads(metadata("spot/instance-action"))
        print(notice["action"], "at", notice["time"])
        sys.exit()
    # Without a notice the answer is an error 404.
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        time.sleep(PAUSE)
