"""Workers as pools of memory that placement plans with, like GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hwprobe.errors import WorkerError
from hwprobe.machine import Gpu, Machine
from hwprobe.remote.dialling import offer_of
from hwprobe.remote.terms import Offer, WorkerAddress
from hwprobe.remote.tls import Trust

Ask = Callable[[WorkerAddress, Trust], Offer]


class Fleet:
    """The workers that were there at the start.

    Attributes:
        reached: their addresses, in the order they were named.
    """

    def __init__(
        self,
        addresses: Sequence[WorkerAddress],
        trust: Trust,
        *,
        tell: Callable[[str], None],
        ask: Ask = offer_of,
    ) -> None:
        """Ask every worker what it offers; those that do not answer are told of, and left out."""
        self._trust = trust
        self._tell = tell
        self._ask = ask
        offers = self._offers(addresses)
        self._total = {one: offer.memory_bytes for one, offer in offers.items()}
        self.reached = tuple(self._total)

    def joined(self, machine: Machine) -> Machine:
        """The machine with its workers in place of GPUs, which it has none of that can be used.

        A worker that does not answer now has no memory free.
        """
        if machine.planned_gpus or machine.unified_gpus or not self.reached:
            return machine
        offers = self._offers(self.reached)
        free = {one: offers[one].memory_bytes if one in offers else 0 for one in self.reached}
        workers = tuple(
            Gpu(
                index=index,
                name=f"worker {address}",
                total_bytes=max(self._total[address], free[address], 1),
                free_bytes=free[address],
                worker=str(address),
            )
            for index, address in enumerate(self.reached)
        )
        return replace(machine, gpus=workers, engine_offload=True)

    def _offers(self, addresses: Sequence[WorkerAddress]) -> dict[WorkerAddress, Offer]:
        """What each offers, all asked at the same time."""
        if not addresses:
            return {}
        with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
            answers = list(pool.map(self._offer, addresses))
        return {address: offer for address, offer in zip(addresses, answers, strict=True) if offer}

    def _offer(self, address: WorkerAddress) -> Offer | None:
        try:
            return self._ask(address, self._trust)
        except WorkerError as error:
            self._tell(str(error))
            return None
