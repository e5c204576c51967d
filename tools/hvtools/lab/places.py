# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Places at labgrid's coordinator: found, reserved, acquired, and released again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import grpc
from labgrid.remote.client import ClientSession, ServerError
from labgrid.remote.common import ReservationState
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.util.proxy import proxymanager

from hvtools.errors import HvError, UsageError

DEFAULT_PORT = 20408
_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 1.0  # a reservation that is not asked for expires after a minute


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[ClientSession]:
    """Connect to a coordinator, as labgrid-client does.

    Args:
        address: HOST or HOST:PORT.

    Raises:
        HvError: nobody answers there.
    """
    try:
        target = proxymanager.get_grpc_address(address, default_port=DEFAULT_PORT)
    except Exception as error:
        raise UsageError(f"{address!r} is not the address of a coordinator: HOST:PORT is") from error
    session = ClientSession(target, asyncio.get_running_loop())
    try:
        logging.disable(logging.CRITICAL)  # it would log what we say in one line
        async with asyncio.timeout(_CONNECT_SECONDS):
            await session.start()
    except (ServerError, TimeoutError) as error:
        await session.close()
        raise HvError(f"labgrid's coordinator at {target} does not answer: give --coordinator") from error
    finally:
        logging.disable(logging.NOTSET)
    try:
        yield session
    finally:
        await session.stop()
        await session.close()


def select(session: ClientSession, names: Sequence[str], tags: Mapping[str, str]) -> list[str]:
    """Find places.

    Args:
        session: the coordinator.
        names: places by name.
        tags: all places that have all of these, too.

    Raises:
        UsageError: there is no such place.
    """
    there = session.places
    if unknown := [name for name in names if name not in there]:
        known = f"they are {', '.join(sorted(there))}" if there else "it has none at all"
        raise UsageError(f"the coordinator has no place {unknown[0]!r}: {known}")
    tagged = [name for name, place in sorted(there.items()) if tags and tags.items() <= place.tags.items()]
    if tags and not tagged:
        raise UsageError(f"no place has the tag {' '.join(f'{key}={value}' for key, value in tags.items())}")
    return list(dict.fromkeys([*names, *tagged]))


class Held:
    """Places that are ours until they are released."""

    def __init__(self, session: ClientSession) -> None:
        """None yet."""
        self._session = session
        self._reservations: dict[str, str] = {}
        self._acquired: list[str] = []

    async def take(self, names: Sequence[str], wait: float) -> None:
        """Reserve and acquire all of them, or none.

        Args:
            names: the places.
            wait: seconds to wait for those that others have.

        Raises:
            HvError: one is busy, or its resources are gone.
        """
        end = time.monotonic() + wait
        try:
            await self._reserve(names, end)
        except grpc.aio.AioRpcError as error:
            raise HvError(f"{', '.join(names)} cannot be reserved: {error.details()}") from error
        for name in names:
            try:
                await self._session.stub.AcquirePlace(messages.AcquirePlaceRequest(placename=name))
            except grpc.aio.AioRpcError as error:
                raise HvError(f"{name} cannot be acquired: {error.details()}") from error
            self._acquired.append(name)

    async def _reserve(self, names: Sequence[str], end: float) -> None:
        for name in names:
            wanted = {"main": messages.Reservation.Filter(filter={"name": name})}
            request = messages.CreateReservationRequest(filters=wanted, prio=0.0)
            answer = await self._session.stub.CreateReservation(request)
            self._reservations[name] = answer.reservation.token
        while busy := await self._busy():
            if time.monotonic() >= end:
                raise HvError(f"{busy[0]} is busy, {await self._holder(busy[0])}: choose another")
            await asyncio.sleep(_POLL_SECONDS)

    async def _busy(self) -> list[str]:
        """Ask for every reservation, so that none expires while another is waited for.

        Returns:
            the places that others have.

        Raises:
            HvError: a reservation expired, or its place was deleted.
        """
        busy = []
        for name, token in self._reservations.items():
            answer = await self._session.stub.PollReservation(messages.PollReservationRequest(token=token))
            state = ReservationState(answer.reservation.state)
            if state in (ReservationState.expired, ReservationState.invalid):
                raise HvError(f"the reservation of {name} is {state.name}: run it again")
            if state is ReservationState.waiting:
                busy.append(name)
        return busy

    async def _holder(self, name: str) -> str:
        place = self._session.places[name]
        if place.acquired:
            return f"{place.acquired} has it"
        answer = await self._session.stub.GetReservations(messages.GetReservationsRequest())
        owners = [found.owner for found in answer.reservations if found.token == place.reservation]
        return f"{owners[0]} reserved it" if owners else "it was reserved"

    async def release(self, name: str) -> None:
        """Give a place back, whatever of it we have."""
        stub = self._session.stub
        with contextlib.suppress(grpc.aio.AioRpcError):  # somebody else released it, or the coordinator is gone
            if name in self._acquired:
                self._acquired.remove(name)
                await stub.ReleasePlace(messages.ReleasePlaceRequest(placename=name))
        with contextlib.suppress(grpc.aio.AioRpcError):
            if token := self._reservations.pop(name, None):
                await stub.CancelReservation(messages.CancelReservationRequest(token=token))

    async def release_all(self) -> None:
        """Give everything back."""
        for name in [*self._reservations]:
            await self.release(name)
