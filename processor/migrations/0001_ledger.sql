-- The ledger of decided payments, and who may write it.

CREATE TABLE part_owner (
    topic         text        NOT NULL,
    part          integer     NOT NULL,
    epoch         bigint      NOT NULL,
    watermark     bigint      NOT NULL,
    instance      text        NOT NULL,
    taken_over_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, part),
    -- One database holds the ledger of one topic: the ledger's rows name only the partition.
    CONSTRAINT one_topic_per_database UNIQUE (part)
) WITH (fillfactor = 50);

COMMENT ON TABLE part_owner IS 'Which lane may write a partition''s ledger rows, and up to where they are committed.';
COMMENT ON COLUMN part_owner.topic IS 'The payments topic, with its prefix.';
COMMENT ON COLUMN part_owner.part IS 'Partition of the payments topic.';
COMMENT ON COLUMN part_owner.epoch IS 'Counted up at each takeover: a write that carries an older epoch changes nothing.';
COMMENT ON COLUMN part_owner.watermark IS 'Ledger rows below this offset are committed; the others are prepared.';
COMMENT ON COLUMN part_owner.instance IS 'Which processor and lane took the partition over last.';
COMMENT ON COLUMN part_owner.taken_over_at IS 'When.';

CREATE TABLE ledger (
    part             integer       NOT NULL,
    off              bigint        NOT NULL,
    tenant           text          NOT NULL,
    event_id         uuid          NOT NULL,
    account_id       text          NOT NULL,
    amount           numeric(18,4) NOT NULL,
    currency         text          NOT NULL,
    occurred_at      timestamptz   NOT NULL,
    outcome          text          NOT NULL,
    score            double precision NOT NULL,
    reasons          text[]        NOT NULL,
    rule_set_version text          NOT NULL,
    late             boolean       NOT NULL,
    epoch            bigint        NOT NULL,
    run              uuid          NOT NULL,
    prepared_at      timestamptz   NOT NULL DEFAULT now(),
    PRIMARY KEY (part, off),
    UNIQUE (part, tenant, event_id)
) PARTITION BY LIST (part);

COMMENT ON TABLE ledger IS 'One row for each decided payment; a takeover creates the partition of a part that it meets first.';
COMMENT ON COLUMN ledger.part IS 'Partition of the payment in the payments topic.';
COMMENT ON COLUMN ledger.off IS 'Offset of the payment in that partition.';
COMMENT ON COLUMN ledger.tenant IS 'Who owns the payment.';
COMMENT ON COLUMN ledger.event_id IS 'The payment''s identity within its tenant.';
COMMENT ON COLUMN ledger.account_id IS 'The account that pays.';
COMMENT ON COLUMN ledger.amount IS 'In the currency''s major unit.';
COMMENT ON COLUMN ledger.currency IS 'ISO 4217 code.';
COMMENT ON COLUMN ledger.occurred_at IS 'When the payment happened, by the client''s clock.';
COMMENT ON COLUMN ledger.outcome IS 'APPROVE, REVIEW or DECLINE.';
COMMENT ON COLUMN ledger.score IS 'From 0 to 1.';
COMMENT ON COLUMN ledger.reasons IS 'Rules that fired, as rule@version, in the order of the rule set.';
COMMENT ON COLUMN ledger.rule_set_version IS 'Version of the rules and their thresholds.';
COMMENT ON COLUMN ledger.late IS 'Too late for the rules that need history.';
COMMENT ON COLUMN ledger.epoch IS 'Epoch of the lane that wrote the row.';
COMMENT ON COLUMN ledger.run IS 'The processor run that wrote the row: its logs carry the same id.';
COMMENT ON COLUMN ledger.prepared_at IS 'When the row was written, by Postgres'' clock.';

CREATE TABLE compensation (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic        text        NOT NULL,
    part         integer     NOT NULL,
    epoch        bigint      NOT NULL,
    first_off    bigint      NOT NULL,
    last_off     bigint      NOT NULL,
    row_count    bigint      NOT NULL,
    reason       text        NOT NULL,
    run          uuid        NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE compensation IS 'Prepared ledger rows that a takeover removed, because the Kafka transaction they belong to never committed.';
COMMENT ON COLUMN compensation.epoch IS 'Epoch of the takeover.';
COMMENT ON COLUMN compensation.first_off IS 'Lowest offset removed.';
COMMENT ON COLUMN compensation.last_off IS 'Highest offset removed.';
COMMENT ON COLUMN compensation.row_count IS 'Rows removed.';
COMMENT ON COLUMN compensation.reason IS 'Why the takeover happened.';
COMMENT ON COLUMN compensation.run IS 'The processor run that took over.';
COMMENT ON COLUMN compensation.recorded_at IS 'When, by Postgres'' clock.';

CREATE VIEW transactions AS
SELECT CASE WHEN ledger.off < part_owner.watermark THEN 'COMMITTED' ELSE 'PREPARED' END AS status,
       part_owner.topic,
       ledger.*
FROM ledger
JOIN part_owner USING (part);

COMMENT ON VIEW transactions IS 'The ledger with the status of each row: COMMITTED below its partition''s watermark, else PREPARED.';
