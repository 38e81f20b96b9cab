"""Publishes ten payments and prints the decision about each of them as it arrives."""

import asyncio
import os
import sys
import time
import uuid
from collections import deque

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

from sluice.v1.decision_pb2 import FraudDecision, Outcome
from sluice.v1.decisions_pb2 import DecisionFilter, Latest, SubscribeCredit, SubscribeOpen, SubscribeRequest
from sluice.v1.decisions_pb2_grpc import DecisionServiceStub
from sluice.v1.event_pb2 import PAYMENT_METHOD_CARD_NOT_PRESENT, Event, PaymentEvent
from sluice.v1.ingest_pb2 import ACK_STATUS_STORED, AckStatus, Credit, EventBatch, PublishOpen, PublishRequest
from sluice.v1.ingest_pb2_grpc import IngestServiceStub

TARGET = os.environ.get("SLUICE_TARGET", "127.0.0.1:50051")
API_KEY = os.environ.get("SLUICE_API_KEY", "sluice-dev-key")
TIMEOUT_S = 30
# Decisions that the gateway may have on the way to us at a time.
SUBSCRIBE_CREDIT = 100
# The last one is above 10,000 EUR, so that the rule LARGE_AMOUNT fires.
AMOUNTS_CENTS = [499, 1250, 1999, 2500, 3075, 4200, 5990, 7525, 8999, 1_250_000]


class Failed(Exception):
    """Says in one line why the example did not succeed."""


def uuid7() -> str:
    """Makes an event_id. It begins with the time, which keeps the indexes over event_ids small and fast."""
    return str(uuid.UUID(int=time.time_ns() // 10**6 << 80 | 0x3 << 76 | uuid.uuid4().int & (1 << 80) - 1))


def payment(account_id: str, cents: int) -> Event:
    occurred_at = Timestamp()
    occurred_at.GetCurrentTime()
    return Event(
        event_id=uuid7(),
        occurred_at=occurred_at,
        payment=PaymentEvent(
            account_id=account_id,
            # Money is whole units and billionths, never a float.
            amount=Money(currency_code="EUR", units=cents // 100, nanos=cents % 100 * 10_000_000),
            merchant_id="example-shop",
            merchant_category="5732",
            method=PAYMENT_METHOD_CARD_NOT_PRESENT,
        ),
    )


async def read(stream):
    response = await stream.read()
    if response is grpc.aio.EOF:
        raise Failed("the gateway ended the stream")
    return response


def take(pending: deque[Event], credit: Credit, max_batch_events: int) -> list[Event]:
    """Moves as many events from `pending` into a batch as the credit allows, and takes them off the credit."""
    batch = []
    while pending and len(batch) < max_batch_events and credit.events > 0 and credit.bytes >= pending[0].ByteSize():
        credit.events -= 1
        credit.bytes -= pending[0].ByteSize()
        batch.append(pending.popleft())
    return batch


async def publish(stream, events: list[Event]) -> None:
    """Publishes the events and returns when all of them are stored."""
    # A real publisher keeps its producer_id, and raises the epoch with every start.
    await stream.write(PublishRequest(open=PublishOpen(producer_id=str(uuid.uuid4()), epoch=1)))
    response = await read(stream)
    if not response.HasField("ready"):
        raise Failed("the gateway did not answer Open with Ready")
    ready = response.ready

    pending, unacked = deque(events), len(events)
    next_sequence, credit = ready.next_sequence, ready.credit
    while unacked:
        if batch := take(pending, credit, ready.limits.max_batch_events):
            await stream.write(PublishRequest(batch=EventBatch(first_sequence=next_sequence, events=batch)))
            next_sequence += len(batch)
            continue

        # Nothing more may be sent now, so it is time to listen.
        response = await read(stream)
        if response.HasField("ack"):
            ack = response.ack
            if ack.status != ACK_STATUS_STORED:
                why = f"{ack.error.field}: {ack.error.reason}; {ack.error.remedy}"
                raise Failed(f"event {ack.first_sequence} got {AckStatus.Name(ack.status)}: {why}")
            unacked -= ack.last_sequence - ack.first_sequence + 1
        elif response.HasField("credit"):
            credit.events += response.credit.events
            credit.bytes += response.credit.bytes
        # Throttle, Drain and Ping ask nothing of a client that is done in a moment.
    await stream.done_writing()


async def receive(stream, missing: set[str]) -> None:
    """Prints decisions until none is missing."""
    while missing:
        response = await read(stream)
        # Progress moves the position without a decision, and Drain asks nothing of a client that is done in a moment.
        for decision in response.batch.decisions:
            if decision.event_id not in missing:
                raise Failed(f"the decision about {decision.event_id} came twice, or nobody asked for it")
            missing.remove(decision.event_id)
            print(line(decision), flush=True)
        # Credit is given back once the decisions are processed, so that a slow client is never flooded.
        if response.HasField("batch"):
            credit = SubscribeCredit(decisions=len(response.batch.decisions))
            await stream.write(SubscribeRequest(credit=credit))


def line(decision: FraudDecision) -> str:
    outcome = Outcome.Name(decision.outcome).removeprefix("OUTCOME_")
    reasons = ",".join(reason.rule_id for reason in decision.reasons) or "-"
    return f"{decision.event_id} {outcome} {decision.score:.3f} {reasons}"


async def run(missing: set[str], events: list[Event], account_id: str) -> None:
    metadata = [("authorization", f"Bearer {API_KEY}")]
    # Without TLS, as the development gateway is: elsewhere use grpc.aio.secure_channel, or the key can be read.
    async with grpc.aio.insecure_channel(TARGET) as channel:
        # Subscribed before anything is published, and ready: no decision can be missed.
        subscription = DecisionServiceStub(channel).Subscribe(metadata=metadata)
        await subscription.write(
            SubscribeRequest(
                open=SubscribeOpen(
                    latest=Latest(), filter=DecisionFilter(account_ids=[account_id]), credit=SUBSCRIBE_CREDIT
                )
            )
        )
        if not (await read(subscription)).HasField("ready"):
            raise Failed("the gateway did not answer Open with Ready")

        # Both at once: decisions arrive while later payments are still being published.
        session = IngestServiceStub(channel).Publish(metadata=metadata)
        await asyncio.gather(publish(session, events), receive(subscription, missing))


def main() -> None:
    account_id = f"example-{uuid.uuid4()}"
    events = [payment(account_id, cents) for cents in AMOUNTS_CENTS]
    missing = {event.event_id for event in events}
    try:
        asyncio.run(asyncio.wait_for(run(missing, events, account_id), TIMEOUT_S))
    except Failed as failed:
        sys.exit(f"error: {failed}")
    except grpc.aio.AioRpcError as error:
        sys.exit(f"error: {TARGET}: {error.code().name}: {error.details()}")
    except asyncio.TimeoutError:
        arrived = len(events) - len(missing)
        sys.exit(f"error: not done within {TIMEOUT_S} s: {arrived} of {len(events)} decisions arrived")


if __name__ == "__main__":
    main()
