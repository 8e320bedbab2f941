"""Throw mutated documents at every parser, with little memory and time, and say what escaped.

    python -m tests.fakes.fuzz_child SEED COUNT

Prints one JSON object: how many inputs each parser took, and how many of them it accepted. Ends
with a trace if anything but a refusal of ours escapes, if one input takes longer than
`MOST_SECONDS`, or if memory runs out.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable

from bundler.format import envelope
from bundler.format.consent import APPROVAL_TYPE, Permit, parse_permit, permit
from bundler.format.digest import Digest
from bundler.format.errors import BundleError
from bundler.format.index import parse_index
from bundler.format.modelfile import parse as parse_modelfile
from bundler.format.name import ModelName
from bundler.format.paper import join, split
from bundler.format.root import encode_root, parse_root
from bundler.format.statement import parse_manifest
from bundler.format.strict import parse_json
from bundler.format.update import encode_update, parse_update
from bundler.keyuri import parse_key_uri
from tests.fakes.forge import forge
from tests.fakes.roots import make_root, signed

MOST_SECONDS = 2.0
MOST_BYTES = 256 << 20
"""More than what is mapped before the first input."""
HONEST = forge(layers=[("license", b"MIT")], segment_bytes=10_000)
PERMIT = Permit(
    statement=Digest.of(b"x"),
    channel="prod",
    seq=7,
    instead_of=9,
    audience=("*",),
    issued="2026-11-22T00:00:00Z",
    expires="2026-12-22T00:00:00Z",
)
ROOT = signed(make_root(version=2))
PIECES = (
    b"{",
    b"[",
    b'"',
    b"\\",
    b"\x00",
    b"\xff",
    b"9" * 400,
    b"[" * 4000,
    b"1e9",
    b"-0",
    b"null",
)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "envelope": (envelope.parse, HONEST.envelope()),
    "approval": (lambda data: envelope.parse(data, payload_type=APPROVAL_TYPE), permit(PERMIT, [])),
    "statement": (parse_manifest, HONEST.payload()),
    "index": (parse_index, HONEST.files[HONEST.manifest.artifacts[0].index.digest.hex]),
    "root": (parse_root, encode_root(make_root())),
    "update": (parse_update, encode_update({2: ROOT})),
    "paper": (
        lambda data: join(data.decode("latin-1").splitlines()),
        "\n".join(split(encode_update({2: ROOT}), characters=300)).encode(),
    ),
    "permit": (
        parse_permit,
        envelope.parse(
            permit(PERMIT, []), payload_type="application/vnd.satchel.permit+json"
        ).payload,
    ),
    "json": (lambda data: parse_json(data, max_bytes=1 << 20), b'{"a":[1,{"b":"c"}]}'),
    "key uri": (_text(parse_key_uri), b"pkcs11:token=a;object=b;id=%01?module-path=/x"),
    "name": (_text(ModelName.parse), b"host:80/space/model:tag"),
    "modelfile": (
        _text(lambda text: parse_modelfile(text, require_from=False)),
        b'FROM x\nPARAMETER num_ctx 1\nTEMPLATE """{{ .Prompt }}"""\n',
    ),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with a few things wrong."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        other = chance.randrange(len(data) + 1)
        low, high = sorted((at, other))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:low] + data[high:]
        elif kind == 2:
            data = data[:at] + chance.choice(PIECES) + data[at:]
        elif kind == 3:
            data = data[:high] + data[low:high] + data[high:]
        elif kind == 4:
            data = data[:at]
        else:
            data = data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at:]
    return data


def _late(_signal: int, _frame: object) -> None:
    raise TimeoutError


def main() -> None:
    """Take turns between the parsers."""
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    with open("/proc/self/statm") as file:  # noqa: PTH123 - the size in pages comes first
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES, mapped + MOST_BYTES))
    signal.signal(signal.SIGVTALRM, _late)
    chance = random.Random(seed)
    taken: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for _ in range(count):
        for name, (parse, honest) in PARSERS.items():
            data = mutated(honest, chance)
            taken[name] += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
            try:
                parse(data)
                accepted[name] += 1
            except BundleError:
                pass
            except BaseException:
                print(f"{name}: {data[:400]!r}", file=sys.stderr)  # noqa: T201 - the test reads it
                raise
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(json.dumps({"taken": taken, "accepted": accepted}))  # noqa: T201 - likewise


if __name__ == "__main__":
    main()
