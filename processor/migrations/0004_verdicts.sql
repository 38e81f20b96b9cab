-- A verdict is one of a review. What somebody says of a payment that the rules have approved or declined may be kept when it is
-- said before the payment is there, and then changes nothing.

CREATE OR REPLACE VIEW predictions AS
SELECT l.part, l.off, l.tenant, l.event_id, l.account_id, 1 AS version, 'RULES' AS source, l.outcome, l.score, l.reasons,
       l.rule_set_version AS decided_by, l.prepared_at AS decided_at,
       l.outcome <> 'REVIEW'
           OR NOT EXISTS (SELECT FROM saga_step s WHERE s.part = l.part AND s.tenant = l.tenant AND s.event_id = l.event_id
                          AND s.step = 'VERDICT') AS current
FROM ledger l JOIN part_owner o USING (part)
WHERE l.off < o.watermark
UNION ALL
SELECT l.part, l.off, l.tenant, l.event_id, l.account_id, 2, CASE s.actor WHEN '' THEN 'DEADLINE' ELSE 'ANALYST' END,
       s.outcome, NULL, NULL, s.actor, s.recorded_at, true
FROM saga_step s JOIN ledger l USING (part, tenant, event_id) JOIN part_owner o USING (part)
WHERE s.step = 'VERDICT' AND l.outcome = 'REVIEW' AND l.off < o.watermark;
