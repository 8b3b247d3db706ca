"""Answers a broker's auth callout: argv is URL USER PASSWORD ISSUER_SEED ACCOUNT.

Users are let in whose password is their name backwards, and whose name isn't `mallory`.
Prints `ready` once it is subscribed, and a line for each that it judged.
"""

import asyncio
import base64
import json
import sys
import time

import nats
import nkeys


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(pair, claims):
    claims |= {"jti": str(time.time()), "iat": int(time.time()), "iss": pair.public_key.decode()}
    head = encode(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    text = head + "." + encode(json.dumps(claims).encode())
    return text + "." + encode(pair.sign(text.encode()))


def claims_of(jwt):
    part = jwt.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


async def main():
    url, user, password, seed, account = sys.argv[1:]
    issuer = nkeys.from_seed(seed.encode())
    nc = await nats.connect(url, user=user, password=password)

    async def judge(message):
        asked = claims_of(message.data.decode())["nats"]
        sent, key = asked["connect_opts"], asked["user_nkey"]
        name = sent.get("user", "")
        good = sent.get("pass", "") == name[::-1] and name not in ("", "mallory")
        print(f"{name} {good}", flush=True)
        answer = {"type": "authorization_response", "version": 2}
        if good:
            nats_claims = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
            nats_claims |= {"type": "user", "version": 2}
            answer["jwt"] = sign(issuer, {"sub": key, "name": name, "aud": account, "nats": nats_claims})
        else:
            answer["error"] = "not this one"
        whole = {"sub": key, "aud": asked["server_id"]["id"], "nats": answer}
        await message.respond(sign(issuer, whole).encode())

    await nc.subscribe("$SYS.REQ.USER.AUTH", cb=judge)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.sleep(300)


asyncio.run(main())
