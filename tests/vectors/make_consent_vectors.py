"""Write the frozen examples of trust updates on paper, approvals and permits; run by hand, once.

python -m tests.vectors.make_consent_vectors
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bundler.format.consent import Approval, Permit, approve, permit
from bundler.format.digest import Digest
from bundler.format.keys import SigningKey
from bundler.format.paper import split
from bundler.format.update import encode_update
from tests.fakes.roots import make_root, signed

HERE = Path(__file__).parent / "consents-v1"
ALICE = SigningKey.from_seed(b"A" * 32)
BOB = SigningKey.from_seed(b"B" * 32)
STATEMENT = Digest.of(b"a statement")
SITE = "site-0007"
TIME = "2026-11-22T10:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentVector:
    """One example: what it is, its bytes, and what a reader makes of it.

    Attributes:
        kind: ``update``, ``approval`` or ``permit``.
        data: texts of a sheet, one a line, or an envelope.
        outcome: ``ok``, or the error's name. Approvals are read for `SITE`; Alice and Bob are
            the keys of the role, both are needed for a permit.
    """

    kind: str
    data: bytes
    outcome: str


def vectors() -> dict[str, ConsentVector]:
    """Every example by name."""
    roots = {number: signed(make_root(version=number)) for number in (2, 3)}
    sheet = split(encode_update(roots), characters=400)
    value = Permit(
        statement=STATEMENT,
        channel="prod",
        seq=7,
        instead_of=9,
        audience=(SITE,),
        issued=TIME,
        expires="2026-12-24T00:00:00Z",
    )
    here = Approval(statement=STATEMENT, site=SITE, at=TIME)
    there = Approval(statement=STATEMENT, site="site-0008", at=TIME)
    return {
        "sheet": ConsentVector(kind="update", data=_lines(sheet), outcome="ok"),
        "sheet-in-another-order": ConsentVector(
            kind="update", data=_lines(reversed(sheet)).lower(), outcome="ok"
        ),
        "sheet-without-a-code": ConsentVector(
            kind="update", data=_lines(sheet[1:]), outcome="PaperError"
        ),
        "sheet-with-a-slip": ConsentVector(
            kind="update", data=_lines(sheet).replace(b"A", b"B", 3), outcome="PaperError"
        ),
        "approval": ConsentVector(kind="approval", data=approve(here, [ALICE]), outcome="ok"),
        "approval-for-another-site": ConsentVector(
            kind="approval", data=approve(there, [ALICE]), outcome="OtherConsentError"
        ),
        "approval-of-a-permit": ConsentVector(
            kind="approval", data=permit(value, [ALICE]), outcome="EnvelopeError"
        ),
        "permit": ConsentVector(kind="permit", data=permit(value, [ALICE, BOB]), outcome="ok"),
        "permit-half-signed": ConsentVector(
            kind="permit", data=permit(value, [ALICE]), outcome="ThresholdError"
        ),
    }


def _lines(texts: object) -> bytes:
    assert hasattr(texts, "__iter__")
    return "".join(f"{text}\n" for text in texts).encode()


def main() -> None:
    """Write what is missing."""
    listing = HERE / "expectations.json"
    known: dict[str, object] = json.loads(listing.read_bytes()) if listing.exists() else {}
    HERE.mkdir(exist_ok=True)
    for name, vector in vectors().items():
        if name not in known:
            (HERE / name).write_bytes(vector.data)
            known[name] = {"kind": vector.kind, "outcome": vector.outcome}
    listing.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
