// Publishes ten payments and prints the decision about each of them as it arrives.

import { randomUUID } from "node:crypto";

import { create, toBinary } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { v7 as uuidv7 } from "uuid";

import { AckStatus, DecisionClient, EventSchema, IngestClient, Outcome, PaymentMethod } from "@sluice-gateway/client";

const TARGET = process.env.SLUICE_TARGET || "127.0.0.1:50051";
const API_KEY = process.env.SLUICE_API_KEY || "sluice-dev-key";
const TIMEOUT_S = 30;
// Decisions that the gateway may have on the way to us at a time.
const SUBSCRIBE_CREDIT = 100;
// The last one is above 10,000 EUR, so that the rule LARGE_AMOUNT fires.
const AMOUNTS_CENTS = [499, 1250, 1999, 2500, 3075, 4200, 5990, 7525, 8999, 1_250_000];

function payment(accountId, cents) {
  return create(EventSchema, {
    // Version 7 begins with the time, which keeps the indexes over event_ids small and fast.
    eventId: uuidv7(),
    occurredAt: timestampNow(),
    payload: {
      case: "payment",
      value: {
        accountId,
        // Money is whole units and billionths, never a float.
        amount: { currencyCode: "EUR", units: BigInt(Math.trunc(cents / 100)), nanos: (cents % 100) * 10_000_000 },
        merchantId: "example-shop",
        merchantCategory: "5732",
        method: PaymentMethod.CARD_NOT_PRESENT,
      },
    },
  });
}

// Reads one message of a stream; the stream's own error is thrown as it is.
async function read(responses) {
  const { value, done } = await responses.next();
  if (done) throw new Error("the gateway ended the stream");
  return value.message;
}

async function readReady(responses) {
  const message = await read(responses);
  if (message.case !== "ready") throw new Error("the gateway did not answer Open with Ready");
  return message.value;
}

// Moves as many events from `pending` into a batch as the credit allows, and takes them off the credit.
function take(pending, credit, maxBatchEvents) {
  const batch = [];
  while (pending.length > 0 && batch.length < maxBatchEvents) {
    const bytes = BigInt(toBinary(EventSchema, pending[0]).length);
    if (credit.events < 1n || credit.bytes < bytes) break;
    credit.events -= 1n;
    credit.bytes -= bytes;
    batch.push(pending.shift());
  }
  return batch;
}

// Publishes the events and returns when all of them are stored.
async function publish(session, events) {
  const responses = session[Symbol.asyncIterator]();
  // A real publisher keeps its producer_id, and raises the epoch with every start.
  session.write({ message: { case: "open", value: { producerId: randomUUID(), epoch: 1n } } });
  const { nextSequence, credit = { events: 0n, bytes: 0n }, limits } = await readReady(responses);

  const pending = [...events];
  let firstSequence = nextSequence;
  let unacked = BigInt(events.length);
  while (unacked > 0n) {
    const batch = take(pending, credit, limits.maxBatchEvents);
    if (batch.length > 0) {
      // What write() buffers is bounded by the credit.
      session.write({ message: { case: "batch", value: { firstSequence, events: batch } } });
      firstSequence += BigInt(batch.length);
      continue;
    }

    // Nothing more may be sent now, so it is time to listen.
    const message = await read(responses);
    if (message.case === "ack") {
      const { firstSequence: first, lastSequence: last, status, error } = message.value;
      if (status !== AckStatus.STORED) {
        const why = error ? `: ${error.field}: ${error.reason}; ${error.remedy}` : "";
        throw new Error(`event ${first} got ${AckStatus[status]}${why}`);
      }
      unacked -= last - first + 1n;
    } else if (message.case === "credit") {
      credit.events += message.value.events;
      credit.bytes += message.value.bytes;
    }
    // Throttle, Drain and Ping ask nothing of a client that is done in a moment.
  }
  session.end();
}

// Prints decisions until none is missing.
async function receive(subscription, responses, missing) {
  while (missing.size > 0) {
    const message = await read(responses);
    // Progress moves the position without a decision, and Drain asks nothing of a client that is done in a moment.
    if (message.case !== "batch") continue;
    const { decisions } = message.value;
    for (const decision of decisions) {
      if (!missing.delete(decision.eventId)) {
        throw new Error(`the decision about ${decision.eventId} came twice, or nobody asked for it`);
      }
      console.log(line(decision));
    }
    // Credit is given back once the decisions are processed, so that a slow client is never flooded.
    subscription.write({ message: { case: "credit", value: { decisions: decisions.length } } });
  }
}

function line({ eventId, outcome, score, reasons }) {
  const rules = reasons.map((reason) => reason.ruleId).join(",") || "-";
  return `${eventId} ${Outcome[outcome]} ${score.toFixed(3)} ${rules}`;
}

async function run(accountId, events, missing) {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${API_KEY}`);
  const options = { deadline: Date.now() + TIMEOUT_S * 1000 };
  // Without TLS, as the development gateway is: elsewhere use credentials.createSsl(), or the key can be read.
  const credentials = grpc.credentials.createInsecure();

  // Subscribed before anything is published, and ready: no decision can be missed.
  const subscription = new DecisionClient(TARGET, credentials).subscribe(metadata, options);
  const responses = subscription[Symbol.asyncIterator]();
  const start = { case: "latest", value: {} };
  const open = { start, filter: { accountIds: [accountId] }, credit: SUBSCRIBE_CREDIT };
  subscription.write({ message: { case: "open", value: open } });
  await readReady(responses);

  // Both at once: decisions arrive while later payments are still being published.
  const session = new IngestClient(TARGET, credentials).publish(metadata, options);
  await Promise.all([publish(session, events), receive(subscription, responses, missing)]);
}

const accountId = `example-${randomUUID()}`;
const events = AMOUNTS_CENTS.map((cents) => payment(accountId, cents));
const missing = new Set(events.map((event) => event.eventId));
try {
  await run(accountId, events, missing);
} catch (error) {
  const arrived = events.length - missing.size;
  let { message } = error;
  if (error.code === grpc.status.DEADLINE_EXCEEDED) {
    message = `not done within ${TIMEOUT_S} s: ${arrived} of ${events.length} decisions arrived`;
  } else if (error.details !== undefined) {
    message = `${TARGET}: ${grpc.status[error.code]}: ${error.details}`;
  }
  console.error(`error: ${message}`);
  process.exitCode = 1;
}
// Ends the streams that are still open, too.
process.exit();
