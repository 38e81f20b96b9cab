-- The money behind the decisions: what is reserved, captured, released or held, and who may move it.

CREATE TABLE saga_owner (
    part          integer     NOT NULL PRIMARY KEY,
    epoch         bigint      NOT NULL,
    settled       bigint      NOT NULL,
    notified      bigint      NOT NULL,
    verdicts      bigint      NOT NULL,
    clock_ms      bigint      NOT NULL,
    instance      text        NOT NULL,
    taken_over_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT told_of_what_is_settled CHECK (notified <= settled)
) WITH (fillfactor = 50);

COMMENT ON TABLE saga_owner IS 'Which processor may move the money of a partition''s payments, and how far it has come.';
COMMENT ON COLUMN saga_owner.epoch IS 'Counted up each time that a processor takes the partition: a write that carries an older epoch changes nothing.';
COMMENT ON COLUMN saga_owner.settled IS 'Payments of the ledger below this offset are captured (APPROVE) or released (DECLINE), unless they have a row in saga.';
COMMENT ON COLUMN saga_owner.notified IS 'Of those, the ones below this offset stand in the topic of settlements.';
COMMENT ON COLUMN saga_owner.verdicts IS 'The next offset to be read of the same partition of the topic of verdicts.';
COMMENT ON COLUMN saga_owner.clock_ms IS 'For how long the partition was owned, in milliseconds of the owners'' monotonic clocks. It only rises, and no step of a clock moves it.';
COMMENT ON COLUMN saga_owner.instance IS 'Which processor took it last.';

CREATE TABLE saga (
    part       integer       NOT NULL,
    off        bigint        NOT NULL,
    tenant     text          NOT NULL,
    event_id   uuid          NOT NULL,
    account_id text          NOT NULL,
    amount     numeric(18,4) NOT NULL,
    currency   text          NOT NULL,
    state      text          NOT NULL,
    doubt      boolean       NOT NULL,
    cancelled  boolean       NOT NULL,
    attempts   integer       NOT NULL,
    due_ms     bigint        NOT NULL,
    notified   boolean       NOT NULL,
    epoch      bigint        NOT NULL,
    created_at timestamptz   NOT NULL DEFAULT now(),
    changed_at timestamptz   NOT NULL DEFAULT now(),
    PRIMARY KEY (part, off),
    UNIQUE (part, tenant, event_id),
    CONSTRAINT known_state CHECK
        (state IN ('HELD', 'CAPTURING', 'RELEASING', 'REFUNDING', 'CAPTURED', 'RELEASED', 'REFUNDED'))
);

-- What is to be done next, and what the topic of settlements has still to be told of.
CREATE INDEX saga_due ON saga (part, due_ms) WHERE state IN ('HELD', 'CAPTURING', 'RELEASING', 'REFUNDING');
CREATE INDEX saga_unnotified ON saga (part, off) WHERE NOT notified AND state IN ('CAPTURED', 'RELEASED', 'REFUNDED');

COMMENT ON TABLE saga IS 'The payments that are not trivial: reviews, failures, unknown outcomes, releases after an attempt, refunds. All others have their row in the ledger alone.';
COMMENT ON COLUMN saga.state IS 'HELD for a verdict or the deadline; CAPTURING, RELEASING, REFUNDING until the rail''s answer; CAPTURED, RELEASED, REFUNDED for good.';
COMMENT ON COLUMN saga.doubt IS 'The outcome of the last call is not known: the rail is asked before anything else.';
COMMENT ON COLUMN saga.cancelled IS 'Somebody took the payment back: where it turns out to be captured, it is refunded.';
COMMENT ON COLUMN saga.attempts IS 'Calls in this state that did not lead on.';
COMMENT ON COLUMN saga.due_ms IS 'When something is to be done: the deadline of a hold or the time of the next call, by saga_owner.clock_ms.';
COMMENT ON COLUMN saga.notified IS 'Whether the state stands in the topic of settlements.';
COMMENT ON COLUMN saga.epoch IS 'Epoch of the owner that wrote the row last.';

CREATE TABLE saga_step (
    part        integer     NOT NULL,
    tenant      text        NOT NULL,
    event_id    uuid        NOT NULL,
    step        text        NOT NULL,
    outcome     text        NOT NULL,
    actor       text        NOT NULL,
    reason      text        NOT NULL,
    epoch       bigint      NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    -- The first of several verdicts, or of a verdict and the deadline, is the only one.
    PRIMARY KEY (part, tenant, event_id, step),
    CONSTRAINT known_step CHECK (step IN ('VERDICT', 'CANCEL'))
);

COMMENT ON TABLE saga_step IS 'What was said of a payment from outside, once for each step. It may stand here before the payment does: a CANCEL then keeps it from ever being captured.';
COMMENT ON COLUMN saga_step.step IS 'VERDICT ends a review; CANCEL takes the payment back, whatever its state.';
COMMENT ON COLUMN saga_step.outcome IS 'APPROVE or DECLINE of a verdict; CANCEL.';
COMMENT ON COLUMN saga_step.actor IS 'Who said so: a principal; empty where the deadline did.';
COMMENT ON COLUMN saga_step.reason IS 'Why, in the actor''s words.';

-- Each term is found by a predicate of its own, and none is what the others leave.
CREATE VIEW money_term AS
SELECT 'reserved' AS term, l.part, l.tenant, l.account_id, l.currency, l.amount
FROM ledger l JOIN part_owner o USING (part)
WHERE l.off < o.watermark
UNION ALL
SELECT 'captured', l.part, l.tenant, l.account_id, l.currency, l.amount
FROM ledger l JOIN saga_owner o USING (part)
WHERE l.off < o.settled AND l.outcome = 'APPROVE'
  AND NOT EXISTS (SELECT FROM saga s WHERE s.part = l.part AND s.off = l.off)
UNION ALL
SELECT 'captured', part, tenant, account_id, currency, amount
FROM saga WHERE state IN ('CAPTURED', 'REFUNDING', 'REFUNDED')
UNION ALL
SELECT 'released', l.part, l.tenant, l.account_id, l.currency, l.amount
FROM ledger l JOIN saga_owner o USING (part)
WHERE l.off < o.settled AND l.outcome = 'DECLINE'
  AND NOT EXISTS (SELECT FROM saga s WHERE s.part = l.part AND s.off = l.off)
UNION ALL
SELECT 'released', part, tenant, account_id, currency, amount
FROM saga WHERE state = 'RELEASED'
UNION ALL
SELECT 'held', l.part, l.tenant, l.account_id, l.currency, l.amount
FROM ledger l JOIN part_owner o USING (part) LEFT JOIN saga_owner s USING (part)
WHERE l.off < o.watermark AND l.off >= coalesce(s.settled, 0)
UNION ALL
SELECT 'held', part, tenant, account_id, currency, amount
FROM saga WHERE state IN ('HELD', 'CAPTURING', 'RELEASING')
UNION ALL
SELECT 'refunded', part, tenant, account_id, currency, amount
FROM saga WHERE state = 'REFUNDED';

COMMENT ON VIEW money_term IS 'Every committed payment once as reserved, and once as what became of it: captured, released or held; refunds on top of what was captured.';

CREATE VIEW money AS
SELECT tenant, account_id, currency,
       coalesce(sum(amount) FILTER (WHERE term = 'reserved'), 0) AS reserved,
       coalesce(sum(amount) FILTER (WHERE term = 'captured'), 0) AS captured,
       coalesce(sum(amount) FILTER (WHERE term = 'released'), 0) AS released,
       coalesce(sum(amount) FILTER (WHERE term = 'held'), 0) AS held,
       coalesce(sum(amount) FILTER (WHERE term = 'refunded'), 0) AS refunded,
       count(*) FILTER (WHERE term = 'reserved') AS payments,
       count(*) FILTER (WHERE term IN ('captured', 'released', 'held')) AS payments_settled_or_held
FROM money_term
GROUP BY tenant, account_id, currency;

COMMENT ON VIEW money IS 'By account and currency: reserved = captured + released + held at every moment.';

CREATE VIEW money_broken AS
SELECT * FROM money
WHERE reserved <> captured + released + held OR refunded > captured OR payments <> payments_settled_or_held;

COMMENT ON VIEW money_broken IS 'The accounts whose money does not add up: always empty.';
