#!/usr/bin/env python3
"""A small agent of ViWorkS, written from docs/protocol.md alone; for tests, never shipped.

It uses the standard library only. Python has no RFC 9266 exporter, so its listener must bind sessions to the
certificate; and no zstd, so it refuses compressed bodies: its own commands are short.

    reference_agent.py run --identity FOLDER --state FOLDER --address HOST:PORT [--records N]
    reference_agent.py vectors docs/protocol/vectors.json

`run` connects, reconnects and obeys until it is told to end (SIGTERM), and prints one line for each thing that happens.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import sys
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path

# --- Envelope and keys -------------------------------------------------------------------------------------------

CHALLENGE, HELLO, WELCOME, CONFIRM, REFUSE = 0x01, 0x02, 0x03, 0x04, 0x05
HEARTBEAT, PROBE_ACK, TELEMETRY, ACCEPTED, REJECTED, STARTED = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
OUTPUT, RESULT, CATALOGUE, PIN_REPORT, EVENT, BYE = 0x16, 0x17, 0x18, 0x19, 0x1B, 0x1C
HEARTBEAT_ACK, PROBE, TELEMETRY_ACK, COMMAND, GO = 0x30, 0x31, 0x32, 0x33, 0x34
DROP, CANCEL, RESULT_ACK, DRAIN = 0x35, 0x36, 0x37, 0x3A

PERMANENT = {"cert_untrusted", "binding_mismatch", "revoked", "identity_fork", "protocol_too_old"}


def lp(data):
    return struct.pack(">H", len(data)) + data


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def extract(salt, key):
    return mac(salt or bytes(32), key)


def expand(prk, info):
    return mac(prk, info + b"\x01")


def seal(kind, generation, sequence, body, key):
    head = struct.pack(">BBBBQ", 1, kind, 0, generation, sequence) + body
    return head + mac(key, head)


class Broken(Exception):
    """What the other end sent is not acceptable: the number to close with, and why."""

    def __init__(self, number, name, sentence):
        super().__init__(f"{name}: {sentence}")
        self.number = number


def open_envelope(message, key, sequence):
    """The kind and the body of the next authentic message."""
    if len(message) < 44:
        raise Broken(4400, "bad_envelope", "too short")
    signed, tag = message[:-32], message[-32:]
    expected = bytes(32) if key is None else mac(key, signed)
    if not hmac.compare_digest(tag, expected):
        raise Broken(4400, "bad_envelope", "the tag is wrong")
    version, kind, flags, generation, number = struct.unpack(">BBBBQ", signed[:12])
    if version != 1 or number != sequence or generation != 0:
        raise Broken(4400, "bad_envelope", f"version {version}, sequence {number} where {sequence} was due")
    if flags:
        raise Broken(4400, "bad_envelope", "this agent cannot read compressed bodies")
    return kind, signed[12:]


def schedule(agent_key, server_nonce, challenge, tenant, agent_id, binding):
    """The hello key, and a function from HELLO's bytes to the keys of both directions."""
    prk = extract(server_nonce, agent_key)
    who = lp(tenant.encode()) + lp(uuid.UUID(agent_id).bytes)
    hello_key = expand(
        prk, lp(b"viworks/1 hello") + lp(hashlib.sha256(challenge).digest()) + who + lp(binding)
    )

    def session_keys(hello):
        transcript = lp(hashlib.sha256(challenge + hello).digest()) + lp(binding)
        return (
            expand(prk, lp(b"viworks/1 a2b") + transcript),
            expand(prk, lp(b"viworks/1 b2a") + transcript),
        )

    return hello_key, session_keys


def command_digest(name, arguments):
    digest = hashlib.sha256()
    fields = [name]
    for key in sorted(arguments, key=str.encode):
        fields += [key, arguments[key]]
    for field in fields:
        data = field.encode()
        digest.update(struct.pack(">Q", len(data)) + data)
    return digest.hexdigest()


def catalogue_digest(entries):
    data = bytearray()

    def n(number):
        data.extend(struct.pack(">Q", int(number)))

    def t(text):
        n(len(text.encode()))
        data.extend(text.encode())

    def o(text):
        n(text is not None)
        t(text or "")

    t("viworks/1 catalogue")
    n(len(entries))
    for entry in sorted(entries, key=lambda entry: entry["name"].encode()):
        t(entry["name"])
        t(entry["title"])
        t(entry["risk"])
        n(entry["idempotent"])
        n(len(entry["arguments"]))
        for argument in entry["arguments"]:
            t(argument["name"])
            t(argument["description"])
            value = argument["value"]
            t(value["type"])
            if value["type"] == "string":
                t(value["pattern"])
            elif value["type"] == "integer":
                data.extend(struct.pack(">qq", value["min"], value["max"]))
            elif value["type"] == "choice":
                n(len(value["values"]))
                for choice in value["values"]:
                    t(choice)
            o(argument["default"])
        n(entry["timeout_ms"])
        n(entry["output_bytes_max"])
        o(entry["unavailable"])
    return hashlib.sha256(data).hexdigest()


# --- What it allows ----------------------------------------------------------------------------------------------

WORD = {
    "name": "word",
    "description": "What it says",
    "value": {"type": "string", "pattern": "[a-z0-9-]{1,40}"},
    "default": None,
}


def allowed(name, title, risk, idempotent):
    return {
        "name": name,
        "title": title,
        "risk": risk,
        "idempotent": idempotent,
        "arguments": [WORD],
        "timeout_ms": 20_000,
        "output_bytes_max": 65_536,
        "unavailable": None,
    }


COMMANDS = [
    allowed("ref.echo", "Says a word", "read", True),
    allowed("ref.append", "Adds a line to a file, never twice", "read", False),
]


# --- WebSocket over TLS ------------------------------------------------------------------------------------------


def der_field(data, at):
    """The bounds of the field at `at`: where its content begins, and where it ends."""
    length = data[at + 1]
    start = at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    return start, start + length


def spki_pin(certificate):
    """The pin of a certificate: the seventh field of its body, or the sixth where it has no version."""
    start, _ = der_field(certificate, 0)
    at, end = der_field(certificate, start)
    fields = []
    while at < end:
        _, after = der_field(certificate, at)
        fields.append(certificate[at:after])
        at = after
    key = fields[6] if fields[0][0] == 0xA0 else fields[5]
    return "sha256/" + base64.b64encode(hashlib.sha256(key).digest()).decode()


class Lost(Exception):
    """The connection ended: the number and the text of the close frame, if there was one."""

    def __init__(self, number, text):
        super().__init__(text)
        self.number = number


class Socket:
    """Binary messages over one mutually authenticated WebSocket."""

    def __init__(self, identity, address, pins):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(identity / "ca.crt")
        context.load_cert_chain(identity / "gateway.crt", identity / "gateway.key")
        context.set_alpn_protocols(["http/1.1"])
        leaf = ssl.PEM_cert_to_DER_cert(first_certificate((identity / "gateway.crt").read_text()))
        self.binding = hashlib.sha256(leaf).digest()
        host, port = address.rsplit(":", 1)
        plain = socket.create_connection((host, int(port)), timeout=10)
        self.tls = context.wrap_socket(plain, server_hostname="localhost")
        self.pin = spki_pin(self.tls.getpeercert(binary_form=True))
        if self.pin not in pins:
            raise Lost(None, f"the server's key {self.pin} is not pinned")
        self.buffer = b""
        self.parts = b""
        self.upgrade(address)
        self.tls.settimeout(0.05)

    def upgrade(self, address):
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            "GET /agent/v1/connect HTTP/1.1",
            f"Host: {address}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: viworks.agent.v1",
        )
        self.tls.sendall(("\r\n".join(request) + "\r\n\r\n").encode())
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.tls.recv(4096) or self.ended()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, value = line.split(":", 1)
            headers[name.strip().lower()] = value.strip()
        if lines[0].split(" ")[1] != "101":
            raise Lost(None, f"the upgrade was answered with {lines[0]!r}")
        proof = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        if headers.get("sec-websocket-accept") != base64.b64encode(proof).decode():
            raise Lost(None, "the answer to the upgrade proves nothing")
        if headers.get("sec-websocket-protocol") != "viworks.agent.v1":
            raise Lost(None, "the server does not speak viworks.agent.v1")

    @staticmethod
    def ended():
        raise Lost(None, "the connection was cut")

    def send_frame(self, opcode, payload):
        mask = os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack(">BB", 0x80 | opcode, 0x80 | length)
        elif length < 65_536:
            head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, length)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.tls.settimeout(10)
        self.tls.sendall(head + mask + masked)
        self.tls.settimeout(0.05)

    def take_frame(self):
        data = self.buffer
        if len(data) < 2:
            return None
        length, at = data[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(data[2:10], "big"), 10
        if len(data) < at + length:
            return None
        self.buffer = data[at + length :]
        return data[0] & 0x80, data[0] & 0x0F, data[at : at + length]

    def receive(self):
        """The next message, or nothing when none came within a moment."""
        while True:
            frame = self.take_frame()
            if frame is None:
                try:
                    self.buffer += self.tls.recv(65_536) or self.ended()
                except (TimeoutError, ssl.SSLWantReadError):
                    return None
                except (ConnectionError, ssl.SSLError) as error:
                    raise Lost(None, str(error)) from error
                continue
            last, opcode, payload = frame
            if opcode == 0x8:
                number = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
                raise Lost(number, payload[2:].decode("utf-8", "replace"))
            if opcode == 0x9:
                self.send_frame(0xA, payload)
            elif opcode in (0x0, 0x2):
                self.parts += payload
                if last:
                    message, self.parts = self.parts, b""
                    return message

    def close(self, number, sentence):
        try:
            self.send_frame(0x8, struct.pack(">H", number) + sentence.encode()[:123])
            self.tls.settimeout(1)
            while self.tls.recv(4096):
                pass
        except OSError:
            pass
        finally:
            self.tls.close()


def first_certificate(pem):
    end = "-----END CERTIFICATE-----"
    return pem[: pem.index(end) + len(end)]


# --- What it keeps -----------------------------------------------------------------------------------------------


class State:
    """Everything durable, in one file that is replaced as a whole."""

    def __init__(self, folder, identity):
        self.path = folder / "state.json"
        if self.path.exists():
            self.data = json.loads(self.path.read_text())
        else:
            self.data = {
                "install_id": str(uuid.uuid4()),
                "epoch": identity["epoch"],
                "token": identity["token"],
                "highest_order": 0,
                "low_water": 0,
                "pins": None,
                "journal": {},
                "spool": {},
            }
            self.save()

    def save(self):
        new = self.path.with_suffix(".new")
        with open(new, "w", encoding="utf-8") as file:
            json.dump(self.data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def raise_low_water(self, mark):
        self.data["low_water"] = max(self.data["low_water"], mark)
        gone = [
            key
            for key, entry in self.data["journal"].items()
            if entry["state"] == "reported" and entry["order"] <= self.data["low_water"]
        ]
        for key in gone:
            del self.data["journal"][key]


# --- The agent ---------------------------------------------------------------------------------------------------


def say(*words):
    print(*words, flush=True)


def boottime():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def now():
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


class Agent:
    def __init__(self, options):
        self.options = options
        self.folder = Path(options.state)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity_folder = Path(options.identity)
        self.identity = json.loads((self.identity_folder / "identity.json").read_text())
        self.state = State(self.folder, self.identity)
        self.run_id = str(uuid.uuid4())
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.stopping = False
        self.spool_at_start(options.records)

    def pins(self):
        kept = self.state.data["pins"]
        if kept is not None:
            return kept
        return {"version": 0, "pins": self.options.pin}

    def spool_at_start(self, count):
        epochs = self.state.data["spool"]
        epochs[self.run_id] = {
            "acknowledged": 0,
            "records": [[n + 1, int(time.time() * 1e6) + n, n] for n in range(count)],
        }
        self.state.save()

    def run(self):
        ceiling = 1.0
        while not self.stopping:
            session = Session(self)
            delay = None
            try:
                session.open()
                session.serve()
            except Broken as broken:
                say("broken", broken)
                session.close(broken.number, str(broken))
            except Lost as lost:
                say("lost", lost.number, lost)
            except (OSError, ssl.SSLError) as error:
                say("failed", error)
            if session.refused is not None:
                code, delay = session.refused
                if code in PERMANENT:
                    say("refused for good", code)
                    return 1
            if session.confirmed and time.monotonic() - session.confirmed > 60:
                ceiling = 1.0
            if session.reconnect_after is not None:
                delay = session.reconnect_after
            elif delay is None and session.slot is not None:
                delay = random.uniform(0, min(session.slot, 900))
            if delay is None:
                delay = random.uniform(0, ceiling)
                ceiling = min(ceiling * 2, 60.0)
            until = time.monotonic() + min(delay, 900)
            while not self.stopping and time.monotonic() < until:
                time.sleep(0.02)
        return 0


class Session:
    def __init__(self, agent):
        self.agent = agent
        self.state = agent.state
        self.socket = None
        self.sent_at = {}
        self.next_send = 2
        self.next_receive = 1
        self.refused = None
        self.reconnect_after = None
        self.slot = None
        self.confirmed = None
        self.draining = None
        self.in_flight = []
        self.sent_to = {}
        self.output_sent = 0
        self.deadlines = {}

    # -- messages

    def send(self, kind, body):
        message = seal(kind, 0, self.next_send, json.dumps(body).encode(), self.a2b)
        self.sent_at[self.next_send] = boottime()
        self.next_send += 1
        self.socket.send_frame(0x2, message)
        return len(message) - 44

    def take(self):
        message = self.socket.receive()
        if message is None:
            return None
        kind, body = open_envelope(message, self.b2a, self.next_receive)
        self.next_receive += 1
        self.heard = time.monotonic()
        return kind, json.loads(body)

    def close(self, number, sentence):
        if self.socket is not None:
            self.socket.close(number, sentence)

    # -- opening

    def open(self):
        agent, data, identity = self.agent, self.state.data, self.agent.identity
        self.socket = Socket(agent.identity_folder, agent.options.address, agent.pins()["pins"])
        until = time.monotonic() + 10
        challenge = self.wait(until)
        _, body = open_envelope(challenge, None, 0)
        server_nonce, terms = body[16:48], json.loads(body[48:])
        if not terms["version_min"] <= 1 <= terms["version_max"]:
            raise Broken(4426, "protocol_too_old", "version 1 is not spoken")
        if terms["binding"] != "certificate":
            raise Broken(4401, "binding_mismatch", f"{terms['binding']} there, certificate here")
        hello_key, session_keys = schedule(
            bytes.fromhex(identity["agent_key"]),
            server_nonce,
            challenge,
            identity["tenant"],
            identity["agent_id"],
            self.socket.binding,
        )
        hello = {
            "install_id": data["install_id"],
            "boot_id": agent.boot_id,
            "agent_run_id": agent.run_id,
            "epoch": data["epoch"],
            "token": data["token"],
            "agent_version": "reference 1",
            "version": 1,
            "capabilities": [],
            "catalogue_digest": catalogue_digest(COMMANDS),
            "labels": {"language": "python"},
            "unreported": [
                key for key, entry in data["journal"].items() if entry["state"] != "reported"
            ],
            "highest_order": data["highest_order"],
            "low_water": data["low_water"],
            "pin_set_version": agent.pins()["version"],
            "telemetry": self.positions(),
        }
        sent = seal(
            HELLO,
            identity["key_generation"],
            1,
            os.urandom(32) + json.dumps(hello).encode(),
            hello_key,
        )
        self.a2b, self.b2a = session_keys(sent)
        self.sent_at[1] = boottime()
        self.socket.send_frame(0x2, sent)
        kind, body = open_envelope(self.wait(until), self.b2a, 1)
        self.next_receive = 2
        body = json.loads(body)
        if kind == REFUSE:
            self.on_refuse(body)
        if kind != WELCOME:
            raise Broken(4400, "bad_envelope", f"kind {kind:#x} where WELCOME was due")
        data["epoch"], data["token"] = body["epoch"], body["token"]
        self.state.raise_low_water(body["low_water"])
        self.state.save()
        self.welcome = body
        self.confirm_sequence = self.next_send
        self.send(CONFIRM, {"epoch": body["epoch"]})
        self.confirmed = self.heard = time.monotonic()
        self.slot = body["reconnect_slot_ms"] / 1000
        self.telemetry_credit = body["credits"]["telemetry_bytes"]
        self.output_credit = body["credits"]["output_bytes"]
        say("connected", body["epoch"])

    def wait(self, until):
        while time.monotonic() < until:
            message = self.socket.receive()
            if message is not None:
                return message
        raise Broken(4408, "hello_timeout", "the opening took too long")

    def positions(self):
        """The 16 oldest epochs with something waiting, and the 16 youngest with nothing."""
        spool = self.state.data["spool"].items()
        waiting = [item for item in spool if item[1]["records"]][:16]
        done = [item for item in spool if not item[1]["records"] and item[1]["acknowledged"]][-16:]
        return [
            {"spool_epoch": epoch, "seq": kept["acknowledged"]} for epoch, kept in waiting + done
        ]

    # -- established

    def serve(self):
        agent, data = self.agent, self.state.data
        self.heartbeat()
        if not self.welcome["catalogue_known"]:
            self.send(CATALOGUE, {"digest": catalogue_digest(COMMANDS), "commands": COMMANDS})
        self.adopt_pins(self.welcome["pins"])
        for key, entry in list(data["journal"].items()):
            if entry["state"] == "accepted":
                self.accepted(key, entry)
            elif entry["state"] == "started":
                # The process that started it is gone: this agent runs everything in itself.
                self.finish(key, entry, "indeterminate", "the agent ended while it ran", b"")
            elif entry["state"] == "finished":
                self.send(RESULT, {"command_id": key, "outcome": entry["outcome"]})
        interval = self.welcome["heartbeat_interval_ms"] / 1000
        due = time.monotonic() + interval
        while True:
            if agent.stopping:
                self.goodbye("the agent stops")
            if self.draining is not None and time.monotonic() > self.draining:
                self.goodbye("drained")
            taken = self.take()
            if taken is not None:
                self.on_message(*taken)
            clock = time.monotonic()
            if clock > due:
                self.heartbeat()
                due = clock + interval
            if clock - self.heard > self.welcome["silence_ms"] / 1000:
                raise Broken(4408, "heartbeat_timeout", "the backend is silent")
            self.expire()
            self.deliver()

    def goodbye(self, reason):
        self.send(BYE, {"reason": reason})
        self.close(1000, f"bye: {reason}")
        raise Lost(1000, reason)

    def heartbeat(self):
        waiting = sum(len(kept["records"]) for kept in self.state.data["spool"].values())
        self.send(
            HEARTBEAT,
            {
                "sent_at_ms": int(time.monotonic() * 1000),
                "round_trip_us": None,
                "clock_skew_ms": None,
                "spool_records": waiting,
                "spool_bytes": 0,
                "commands_running": 0,
            },
        )

    def adopt_pins(self, offered):
        kept = self.agent.pins()
        if (
            offered is not None
            and offered["version"] > kept["version"]
            and 2 <= len(offered["pins"]) <= 8
            and self.socket.pin in offered["pins"]
        ):
            # The set before it stays acceptable beside it; this agent keeps both for good.
            both = sorted(set(offered["pins"]) | set(kept["pins"]))
            self.state.data["pins"] = {"version": offered["version"], "pins": both}
            self.state.save()
        self.send(PIN_REPORT, {"version": self.agent.pins()["version"]})

    def on_refuse(self, body):
        after = body["retry_after_ms"]
        self.refused = (body["code"], None if after is None else after / 1000)
        say("refused", body["code"], body["reason"])
        raise Lost(None, body["reason"])

    def on_message(self, kind, body):
        data = self.state.data
        if kind == REFUSE:
            self.on_refuse(body)
        elif kind == HEARTBEAT_ACK:
            self.output_credit = max(self.output_credit, body["output_bytes"])
        elif kind == PROBE:
            self.send(PROBE_ACK, {"id": body["id"]})
        elif kind == TELEMETRY_ACK:
            self.on_telemetry_ack(body["position"])
        elif kind == COMMAND:
            self.on_command(body)
        elif kind == GO:
            entry = data["journal"].get(body["command_id"])
            if entry is not None and entry["state"] == "accepted":
                self.start(body["command_id"], entry, self.deadline(body["permit"]))
        elif kind == DROP:
            entry = data["journal"].get(body["command_id"])
            if entry is not None and entry["state"] == "accepted":
                del data["journal"][body["command_id"]]
                self.state.save()
        elif kind == CANCEL:
            entry = data["journal"].get(body["command_id"])
            if entry is not None and entry["state"] == "accepted":
                self.finish(body["command_id"], entry, "cancelled", "cancelled before it started", b"")
        elif kind == RESULT_ACK:
            entry = data["journal"].get(body["command_id"])
            if entry is not None and entry["state"] == "finished":
                entry["state"] = "reported"
            self.state.raise_low_water(body["low_water"])
            self.state.save()
        elif kind == DRAIN:
            self.reconnect_after = body["reconnect_after_ms"] / 1000
            self.draining = time.monotonic() + 0.5
        else:
            raise Broken(4400, "bad_envelope", f"kind {kind:#x} is not legal here")

    # -- commands

    def deadline(self, permit):
        """Counted from when this agent sent the message that the permit names."""
        sent = self.sent_at.get(permit["as_of"], self.sent_at[self.confirm_sequence])
        return sent + permit["remaining_ms"] / 1000

    def reject(self, key, code, detail):
        self.send(REJECTED, {"command_id": key, "code": code, "detail": detail})

    def on_command(self, offer):
        data, key = self.state.data, offer["command_id"]
        entry = data["journal"].get(key)
        if entry is not None:
            if entry["digest"] != offer["digest"]:
                detail = f"command {key} came again with another digest"
                self.send(EVENT, {"kind": "digest_mismatch", "detail": detail})
                self.reject(key, "digest_mismatch", detail)
            elif entry["state"] == "accepted":
                self.accept_again(key, entry, offer)
            elif entry["state"] in ("finished", "reported"):
                self.send(RESULT, {"command_id": key, "outcome": entry["outcome"]})
            return
        if offer["order"] <= data["low_water"]:
            self.reject(key, "stale", "everything up to this order is final")
            return
        if command_digest(offer["name"], offer["arguments"]) != offer["digest"]:
            self.reject(key, "digest_mismatch", "the digest is not that of name and arguments")
            return
        definition = next((one for one in COMMANDS if one["name"] == offer["name"]), None)
        if definition is None:
            self.reject(key, "not_allowed", f"there is no command {offer['name']}")
            return
        word = offer["arguments"].get("word")
        if list(offer["arguments"]) != ["word"] or not re.fullmatch(WORD["value"]["pattern"], word):
            self.reject(key, "bad_arguments", "word is 1 to 40 letters, digits and hyphens")
            return
        data["highest_order"] = max(data["highest_order"], offer["order"])
        entry = data["journal"][key] = {
            "order": offer["order"],
            "name": offer["name"],
            "word": word,
            "digest": offer["digest"],
            "idempotent": definition["idempotent"],
            "state": "accepted",
            "outcome": None,
        }
        self.state.save()
        self.accept_again(key, entry, offer)

    def accept_again(self, key, entry, offer):
        permitted = offer["permitted"] and entry["idempotent"]
        self.accepted(key, entry, awaiting=not permitted)
        self.deadlines[key] = self.deadline(offer["deadline"])
        if permitted:
            self.start(key, entry, self.deadlines[key])

    def accepted(self, key, entry, awaiting=True):
        self.send(
            ACCEPTED,
            {"command_id": key, "idempotent": entry["idempotent"], "awaiting_permit": awaiting},
        )

    def expire(self):
        for key, due in list(self.deadlines.items()):
            entry = self.state.data["journal"].get(key)
            if entry is None or entry["state"] != "accepted":
                del self.deadlines[key]
            elif boottime() > due:
                del self.deadlines[key]
                self.finish(key, entry, "expired", "its deadline passed", b"")

    def start(self, key, entry, deadline):
        if boottime() > deadline:
            self.finish(key, entry, "expired", "its deadline passed", b"")
            return
        entry["state"] = "started"
        self.state.save()
        self.send(STARTED, {"command_id": key, "started_at": now()})
        if entry["name"] == "ref.append":
            with open(self.agent.folder / "appended", "a", encoding="utf-8") as file:
                file.write(f"{entry['word']}\n")
                file.flush()
                os.fsync(file.fileno())
        said = (entry["word"] + "\n").encode()
        if self.output_sent + len(said) <= self.output_credit:
            self.output_sent += len(said)
            data = base64.b64encode(said).decode()
            self.send(OUTPUT, {"command_id": key, "stream": "stdout", "offset": 0, "data": data})
        say("ran", entry["name"], entry["word"])
        self.finish(key, entry, "succeeded", None, said, exit_code=0)

    def finish(self, key, entry, state, reason, said, exit_code=None):
        empty = {"head": "", "tail": "", "cut_bytes": 0}
        entry["state"] = "finished"
        entry["outcome"] = {
            "state": state,
            "exit_code": exit_code,
            "signal": None,
            "started_at": now() if exit_code is not None else None,
            "duration_ms": 0,
            "stdout": dict(empty, head=base64.b64encode(said).decode()),
            "stderr": empty,
            "reason": reason,
            "reject_code": None,
        }
        self.state.save()
        self.send(RESULT, {"command_id": key, "outcome": entry["outcome"]})

    # -- telemetry

    def deliver(self):
        for epoch, kept in self.state.data["spool"].items():
            begin = self.sent_to.get(epoch, kept["acknowledged"]) + 1
            records = [record for record in kept["records"] if record[0] >= begin][:25]
            if not records or sum(size for _, _, size in self.in_flight) > self.telemetry_credit / 2:
                continue
            times = [record[1] for record in records]
            batch = {
                "spool_epoch": epoch,
                "from_seq": records[0][0],
                "to_seq": records[-1][0],
                "gaps": [],
                "streams": ["ref.tick"],
                "stream": [0] * len(records),
                "observed_at": [times[0]] + [b - a for a, b in zip(times, times[1:])],
                "fields": {"value": [record[2] for record in records]},
            }
            self.sent_to[epoch] = batch["to_seq"]
            self.in_flight.append((epoch, batch["to_seq"], self.send(TELEMETRY, batch)))

    def on_telemetry_ack(self, position):
        epoch, seq = position["spool_epoch"], position["seq"]
        self.in_flight = [one for one in self.in_flight if one[0] != epoch or one[1] > seq]
        kept = self.state.data["spool"].get(epoch)
        if kept is not None and seq > kept["acknowledged"]:
            kept["acknowledged"] = seq
            kept["records"] = [record for record in kept["records"] if record[0] > seq]
            self.state.save()
            if not kept["records"]:
                say("delivered", epoch, seq)


# --- Vectors -----------------------------------------------------------------------------------------------------


def check_vectors(path):
    vectors = json.loads(Path(path).read_text())
    given, keys = vectors["inputs"], vectors["key_schedule"]
    messages = {name: bytes.fromhex(one["message"]) for name, one in vectors["messages"].items()}
    who = lp(given["tenant"].encode()) + lp(uuid.UUID(given["agent_id"]).bytes)
    prk = extract(None, bytes.fromhex(given["master_key"]))
    generation = struct.pack(">I", given["key_generation"])
    agent_key = expand(prk, lp(b"viworks/1 agent") + who + generation)
    assert agent_key.hex() == keys["agent_key"], "agent key"
    for epoch in (6, 7):
        token = expand(prk, lp(b"viworks/1 ratchet") + who + struct.pack(">Q", epoch))
        assert token.hex() == keys[f"token_{epoch}"], "token"
    hello_key, session_keys = schedule(
        agent_key,
        bytes.fromhex(given["server_nonce"]),
        messages["CHALLENGE"],
        given["tenant"],
        given["agent_id"],
        bytes.fromhex(given["binding"]),
    )
    assert hello_key.hex() == keys["hello_key"], "hello key"
    a2b, b2a = session_keys(messages["HELLO"])
    assert (a2b.hex(), b2a.hex()) == (keys["agent_to_backend"], keys["backend_to_agent"])
    by_name = {"none": None, "hello_key": hello_key, "agent_to_backend": a2b, "backend_to_agent": b2a}
    for name, one in vectors["messages"].items():
        signed, tag = messages[name][:-32], messages[name][-32:]
        key = by_name[one["key"]]
        assert tag == (bytes(32) if key is None else mac(key, signed)), f"the tag of {name}"
    command = json.loads(open_envelope(messages["COMMAND"], b2a, 2)[1])
    digest = command_digest(command["name"], command["arguments"])
    assert digest == vectors["command_digest"] == command["digest"], "the digest of the command"
    catalogue = vectors["catalogue"]
    assert catalogue_digest(catalogue["commands"]) == catalogue["digest"], "the catalogue's digest"
    door = vectors["door"]
    prk = extract(bytes.fromhex(door["challenge"]), agent_key)
    agent = lp(uuid.UUID(given["agent_id"]).bytes)
    of_request = agent + lp(hashlib.sha256(door["request"].encode()).digest())
    for label, fields, body, tag in (
        (b"viworks/1 renew request", agent, "request", "request_proof"),
        (b"viworks/1 renew answer", of_request, "answer", "answer_proof"),
        (b"viworks/1 renew authorities", of_request, "authorities", "authorities_mac"),
    ):
        made = mac(expand(prk, lp(label) + fields), door[body].encode())
        assert made.hex() == door[tag], tag
    say("the vectors are right")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--identity", required=True)
    run.add_argument("--state", required=True)
    run.add_argument("--address", required=True)
    run.add_argument("--pin", action="append", required=True)
    run.add_argument("--records", type=int, default=0)
    vectors = verbs.add_parser("vectors")
    vectors.add_argument("path")
    options = parser.parse_args()
    if options.verb == "vectors":
        check_vectors(options.path)
        return 0
    agent = Agent(options)

    def stop(_signal, _frame):
        agent.stopping = True

    signal.signal(signal.SIGTERM, stop)
    return agent.run()


if __name__ == "__main__":
    sys.exit(main())
