"""Write test vectors of trust roots that do not exist yet. Existing ones are never touched.

python -m tests.vectors.make_root_vectors
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.format.keys import SigningKey
from tests.fakes.forge import STRANGER
from tests.fakes.roots import ROOT_A, ROOT_B, ROOT_C, ROOT_D, make_root, signed, signed_payload

HERE: Final = Path(__file__).parent / "root-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootVector:
    """One chain, and what a reader that pinned version 1 of `honest-chain` has to say of it.

    Attributes:
        why: one sentence.
        files: version → envelope.
        outcome: ``ok``, or the class of the refusal.
        version: the root in force afterwards.
    """

    why: str
    files: dict[int, bytes]
    outcome: str = "ok"
    version: int = 1


def _chain(*others: bytes) -> dict[int, bytes]:
    return dict(enumerate((signed(make_root()), *others), start=1))


def _next(*keys: SigningKey, version: int = 2) -> bytes:
    return signed(make_root(version=version, top=(ROOT_C, ROOT_D), threshold=2), *keys)


def vectors() -> dict[str, RootVector]:
    """Every case by name."""
    revoked = frozenset({STRANGER.public_key.key_id})
    return {
        "honest-chain": RootVector(
            why="Version 2 with other root keys, then version 3 with a revoked key and a floor.",
            files=_chain(
                _next(ROOT_A, ROOT_C, ROOT_D),
                signed(
                    make_root(
                        version=3, top=(ROOT_C, ROOT_D), revoked_keys=revoked, min_seq={"prod": 7}
                    ),
                    ROOT_C,
                    ROOT_D,
                ),
            ),
            version=3,
        ),
        "honest-alone": RootVector(why="Nothing follows the pinned root.", files=_chain()),
        "below-old-threshold": RootVector(
            why="Too few keys of version 1 signed version 2.",
            files=_chain(_next(ROOT_C, ROOT_D)),
            outcome="ThresholdError",
        ),
        "below-new-threshold": RootVector(
            why="Too few keys of version 2 signed it.",
            files=_chain(_next(ROOT_A, ROOT_B)),
            outcome="UntrustedKeyError",
        ),
        "skipped-version": RootVector(
            why="Version 3 stands in the place of version 2.",
            files=_chain(_next(ROOT_A, ROOT_C, ROOT_D, version=3)),
            outcome="RootChainError",
        ),
        "stranger": RootVector(
            why="Nobody known signed version 2, which is not even JSON.",
            files=_chain(signed_payload(b"junk", STRANGER)),
            outcome="UntrustedKeyError",
        ),
        "signed-junk": RootVector(
            why="Enough keys signed what is not JSON.",
            files=_chain(signed_payload(b"junk", ROOT_A, ROOT_B)),
            outcome="JsonError",
        ),
        "revoked-key-in-a-role": RootVector(
            why="A root key is listed among the revoked ones.",
            files=_chain(
                signed(make_root(version=2, revoked_keys=frozenset({ROOT_A.public_key.key_id})))
            ),
            outcome="RootError",
        ),
    }


def main() -> None:
    """Write what is missing."""
    known: dict[str, object] = {}
    listing = HERE / "expectations.json"
    if listing.exists():
        known = json.loads(listing.read_bytes())
    for name, vector in vectors().items():
        if name in known:
            continue
        (HERE / name).mkdir(parents=True)
        for version, data in vector.files.items():
            (HERE / name / f"{version}.root.dsse.json").write_bytes(data)
        known[name] = {"why": vector.why, "outcome": vector.outcome, "version": vector.version}
    listing.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
