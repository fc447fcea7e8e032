-- sweep: end holds past their deadline and give their amounts back. Several sweepers share the work: a hold that
-- another one (or a commit) has locked is skipped, so no hold is ever given back twice.
CREATE OR REPLACE FUNCTION sweep(p_limit int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    due uuid[];
    moment bigint := now_ms();  -- a clock inside the condition would keep the planner from the index
BEGIN
    SELECT array_agg(d.id) INTO due FROM (
        SELECT r.id FROM reservation r WHERE r.status = 'ACTIVE' AND r.deadline_ms < moment
        ORDER BY r.deadline_ms LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED
    ) AS d;
    IF due IS NOT NULL THEN
        PERFORM give_back(due, 'EXPIRED');
        PERFORM emit_expiries(due);
    END IF;
    RETURN coalesce(cardinality(due), 0);
END
$$;

-- End locked reservations without a charge: their sums go back to the ledgers in one update, in the one lock order.
CREATE OR REPLACE FUNCTION give_back(p_reservations uuid[], p_status text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM ledger l
    WHERE (l.tenant_id, l.scope, l.unit) IN (
        SELECT r.tenant_id, s.scope, r.unit FROM reservation r, unnest(r.budgeted) AS s(scope)
        WHERE r.id = ANY (p_reservations))
    ORDER BY l.scope, l.unit FOR NO KEY UPDATE;
    UPDATE ledger AS l SET reserved = l.reserved - held.total
    FROM (
        SELECT r.tenant_id, s.scope, r.unit, sum(r.reserved)::bigint AS total
        FROM reservation r, unnest(r.budgeted) AS s(scope)
        WHERE r.id = ANY (p_reservations) GROUP BY 1, 2, 3
    ) AS held
    WHERE l.tenant_id = held.tenant_id AND l.scope = held.scope AND l.unit = held.unit;
    UPDATE reservation SET status = p_status,
        finalized_at_ms = CASE WHEN p_status = 'EXPIRED' THEN NULL ELSE now_ms() END
    WHERE id = ANY (p_reservations);
END
$$;

-- Forget what no one may ask for any more: replays past their window, reservations that ended 30 days ago.
CREATE OR REPLACE FUNCTION purge(p_limit int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    moment bigint := now_ms();
    month_ago bigint := moment - 30 * 86400000::bigint;
    gone int;
    more int;
BEGIN
    DELETE FROM replay WHERE id IN (
        SELECT r.id FROM replay r WHERE r.expires_at_ms < moment LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    DELETE FROM reservation WHERE id IN (
        SELECT old.id FROM tenant t, LATERAL (  -- tenant by tenant, for that is how the index by time is kept
            SELECT r.id FROM reservation r
            WHERE r.tenant_id = t.id AND r.created_at_ms < month_ago
              AND r.status <> 'ACTIVE' AND r.deadline_ms < month_ago
              AND coalesce(r.finalized_at_ms, r.deadline_ms) < month_ago
            LIMIT p_limit FOR UPDATE SKIP LOCKED
        ) AS old LIMIT p_limit);
    GET DIAGNOSTICS more = ROW_COUNT;
    RETURN gone + more + purge_trail(p_limit);
END
$$;
