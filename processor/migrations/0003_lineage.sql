-- Where each row comes from, every judgement that a payment ever had, and what the ledger covers.

-- Both have constant defaults, so that no existing row is written anew, and processors of the version before, which know
-- nothing of them, go on during a rolling deploy.
ALTER TABLE ledger ADD COLUMN batch bigint NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN processing_type text NOT NULL DEFAULT 'STREAM';

COMMENT ON COLUMN ledger.batch IS 'Offset of the first payment of its batch in this partition: rows that were decided together have it in common. 0 where an older version wrote the row.';
COMMENT ON COLUMN ledger.processing_type IS 'STREAM where the deciding lane wrote the row, BATCH where a takeover filled it in again from the topic of decisions.';

CREATE OR REPLACE VIEW transactions AS
SELECT CASE WHEN ledger.off < part_owner.watermark THEN 'COMMITTED' ELSE 'PREPARED' END AS status,
       part_owner.topic,
       ledger.*
FROM ledger
JOIN part_owner USING (part);

CREATE VIEW predictions AS
SELECT l.part, l.off, l.tenant, l.event_id, l.account_id, 1 AS version, 'RULES' AS source, l.outcome, l.score, l.reasons,
       l.rule_set_version AS decided_by, l.prepared_at AS decided_at,
       NOT EXISTS (SELECT FROM saga_step s WHERE s.part = l.part AND s.tenant = l.tenant AND s.event_id = l.event_id
                   AND s.step = 'VERDICT') AS current
FROM ledger l JOIN part_owner o USING (part)
WHERE l.off < o.watermark
UNION ALL
SELECT l.part, l.off, l.tenant, l.event_id, l.account_id, 2, CASE s.actor WHEN '' THEN 'DEADLINE' ELSE 'ANALYST' END,
       s.outcome, NULL, NULL, s.actor, s.recorded_at, true
FROM saga_step s JOIN ledger l USING (part, tenant, event_id) JOIN part_owner o USING (part)
WHERE s.step = 'VERDICT' AND l.off < o.watermark;

COMMENT ON VIEW predictions IS 'Every judgement of every committed payment: that of the rules, and the verdict that followed it. One of them is current.';

CREATE VIEW open_reviews AS
SELECT s.part, s.off, s.tenant, s.event_id, s.account_id, s.amount, s.currency, l.score, l.reasons, l.occurred_at,
       s.created_at AS held_at, greatest(s.due_ms - o.clock_ms, 0) / 1000 AS seconds_left
FROM saga s JOIN saga_owner o USING (part) JOIN ledger l USING (part, off)
WHERE s.state = 'HELD'
UNION ALL
SELECT l.part, l.off, l.tenant, l.event_id, l.account_id, l.amount, l.currency, l.score, l.reasons, l.occurred_at,
       l.prepared_at, NULL
FROM ledger l JOIN part_owner o USING (part) LEFT JOIN saga_owner s USING (part)
WHERE l.outcome = 'REVIEW' AND l.off >= coalesce(s.settled, 0) AND l.off < o.watermark;

COMMENT ON VIEW open_reviews IS 'Payments that wait for a verdict, with the seconds that are left for it; NULL where the saga has not come to the payment yet.';

CREATE VIEW coverage AS
SELECT o.topic, o.part, o.watermark,
       count(l.off) FILTER (WHERE l.off < o.watermark) AS committed_rows,
       count(l.off) FILTER (WHERE l.off >= o.watermark) AS prepared_rows,
       count(l.off) FILTER (WHERE l.processing_type = 'BATCH') AS filled_in_rows,
       min(l.off) AS first_off, max(l.off) AS last_off, max(l.prepared_at) AS newest_at,
       s.settled, s.notified
FROM part_owner o LEFT JOIN ledger l USING (part) LEFT JOIN saga_owner s USING (part)
GROUP BY o.topic, o.part, o.watermark, s.settled, s.notified;

COMMENT ON VIEW coverage IS 'For each partition: the rows that the ledger has, how many were filled in again, and how far the saga has come.';

CREATE TABLE ledger_detached (
    part        integer     NOT NULL,
    below       bigint      NOT NULL,
    name        text        NOT NULL,
    row_count   bigint      NOT NULL,
    detached_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (part, below)
);

COMMENT ON TABLE ledger_detached IS 'Rows that were taken out of the ledger for good, and the tables in which they are until somebody drops them.';
COMMENT ON COLUMN ledger_detached.below IS 'The partition''s rows below this offset are no longer in the ledger.';
COMMENT ON COLUMN ledger_detached.name IS 'The table that has them; those of the saga are in the table of this name with saga before it.';
COMMENT ON COLUMN ledger_detached.row_count IS 'Rows of the ledger in it.';
