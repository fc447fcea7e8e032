-- gathered: the plain ones among reserves and commits that came at the same moment, in one transaction.
--
-- The one-op functions are the truth: whoever has no row in the answer asks `reserve` or `commit_reservation` next.
-- Only what is plain is answered here, with their words: a first reserve that fits and leaves something, one refused with
-- BUDGET_EXCEEDED, a commit in time of at most its estimate. Replays, bad keys, dry runs, frozen or missing ledgers,
-- overage and a ledger that comes to exactly 0 are not plain.
-- What a batch has none of costs it no statement: at eight clients that is a fifteenth of the rate.
-- Rows are read and written by the set; between, the sums are made member by member on copies of the locked ledgers, as
-- if the members had come one after the other: commits first.

CREATE TYPE gathered_member AS (
    place int, operation text, prefix text, digest bytea, subject_tenant text, key text, request bytea,
    scopes text[], unit text, amount bigint, ttl_ms bigint, grace_ms bigint, policy text, dry_run boolean,
    subject text, action text, metadata text, reservation uuid, actual bigint, metrics text);

-- Where the ledgers of these scopes stand in the locked ones, root first; scopes without a ledger are left out.
CREATE OR REPLACE FUNCTION places_of(p_places jsonb, p_scopes text[], p_unit text) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    found_at int[] := '{}';
    place int;
    one_scope text;
BEGIN
    FOREACH one_scope IN ARRAY p_scopes LOOP
        place := p_places -> p_unit ->> one_scope;
        IF place IS NOT NULL THEN
            found_at := found_at || place;
        END IF;
    END LOOP;
    RETURN found_at;
END
$$;

CREATE OR REPLACE FUNCTION gathered(p_members json)
RETURNS TABLE (answer_place int, answer_status int, answer_tenant text, answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    members gathered_member[] := ARRAY(SELECT m FROM json_populate_recordset(NULL::gathered_member, p_members) AS m);
    tenants bigint[];
    locked uuid[];
    books ledger[];    -- the locked ledgers, with what the members before have done to them
    places jsonb;      -- unit -> scope -> its place in the books
    own int[];         -- the places of one member's ledgers
    mine ledger[];     -- these ledgers before it
    member record;
    hold reservation;
    answer replay;
    holds reservation[] := '{}';
    ended reservation[] := '{}';
    answers replay[] := '{}';
    moment bigint;
    change record;     -- and after it
    blocker record;
BEGIN
    -- Locks first, each kind in a statement of its own and in the one lock order; what follows then sees the rows as
    -- they are after the wait.
    tenants := ARRAY(SELECT DISTINCT c.id FROM (SELECT DISTINCT m.prefix, m.digest FROM unnest(members) AS m) AS k,
                     caller_of(k.prefix, k.digest) AS c WHERE c.reason IS NULL ORDER BY c.id);
    PERFORM pg_advisory_xact_lock_shared(tenant_lock(t.id)) FROM unnest(tenants) AS t(id);
    locked := ARRAY(SELECT r.id FROM reservation r
                    WHERE r.id = ANY (ARRAY(SELECT m.reservation FROM unnest(members) AS m))
                    ORDER BY r.id FOR NO KEY UPDATE);
    books := ARRAY(SELECT l FROM ledger l
                   WHERE l.tenant_id + 0 = ANY (tenants) AND l.scope = ANY (ARRAY(
                       SELECT s.scope FROM unnest(members) AS m, unnest(m.scopes) AS s(scope)
                       UNION SELECT s.scope FROM reservation r, unnest(r.budgeted) AS s(scope)
                       WHERE r.id = ANY (locked)))
                   ORDER BY l.scope, l.unit FOR NO KEY UPDATE);
    places := (SELECT jsonb_object_agg(u.unit, u.scopes) FROM (
        SELECT b.unit, jsonb_object_agg(b.scope, b.ordinality) AS scopes
        FROM unnest(books) WITH ORDINALITY AS b GROUP BY b.unit) AS u);
    moment := now_ms();

    -- Of two commits of one reservation only the first is looked at here. The row is found by its id alone: given more
    -- conditions, a planner without figures takes another index and reads all holds of the tenant.
    IF cardinality(locked) > 0 THEN
        FOR member IN
            SELECT DISTINCT ON (r.id) m.*, c.id AS tenant, c.tenant_id, r AS hold
            FROM unnest(members) AS m, caller_of(m.prefix, m.digest) AS c, reservation r
            WHERE m.operation = 'commit_reservation' AND c.reason IS NULL AND r.id = m.reservation
            ORDER BY r.id, m.place
        LOOP
            hold := member.hold;
            CONTINUE WHEN hold.tenant_id <> member.tenant OR hold.status <> 'ACTIVE' OR hold.unit <> member.unit
                          OR hold.reserved < member.actual OR hold.deadline_ms < moment;
            own := places_of(places, hold.budgeted, hold.unit);
            CONTINUE WHEN own = '{}';  -- its tenant was suspended when the ledgers were locked, and no longer is
            mine := NULL;
            FOR i IN 1 .. cardinality(own) LOOP
                mine[i] := books[own[i]];
            END LOOP;
            change := moved(mine, -hold.reserved, member.actual);
            CONTINUE WHEN change.drained;
            FOR i IN 1 .. cardinality(own) LOOP
                books[own[i]] := change.after[i];
            END LOOP;
            answer_place := member.place; answer_status := 200; answer_tenant := member.tenant_id;
            answer_body := jsonb_build_object('status', 'COMMITTED',
                    'charged', amount(hold.unit, member.actual), 'balances', balances_of(change.after))
                || CASE WHEN member.actual < hold.reserved
                        THEN jsonb_build_object('released', amount(hold.unit, hold.reserved - member.actual))
                        ELSE '{}' END;
            RETURN NEXT;
            hold.committed := member.actual;
            hold.metrics := member.metrics; hold.committed_metadata := member.metadata;
            hold.finish_key := member.key; hold.finish_digest := member.request; hold.finish_body := answer_body;
            ended := ended || hold;
        END LOOP;
    END IF;

    -- Of two reserves under one key only the first is looked at here.
    IF cardinality(members) > cardinality(locked) THEN
        FOR member IN
            SELECT DISTINCT ON (c.id, m.key) m.*, c.id AS tenant, c.tenant_id, c.max_extensions,
                   coalesce(m.policy, c.default_policy) AS overage_policy,
                   least(coalesce(m.ttl_ms, c.default_ttl_ms), c.max_ttl_ms) AS ttl
            FROM unnest(members) AS m, caller_of(m.prefix, m.digest) AS c
            WHERE m.operation = 'reserve' AND c.reason IS NULL AND coalesce(m.subject_tenant = c.tenant_id, true)
              AND NOT m.dry_run AND (SELECT r.id FROM replay r WHERE r.tenant_id = c.id AND r.operation = 'reserve'
                                     AND r.key = m.key LIMIT 1) IS NULL  -- no join: it must go by the whole index
            ORDER BY c.id, m.key, m.place
        LOOP
            own := places_of(places, member.scopes, member.unit);
            CONTINUE WHEN own = '{}';
            mine := NULL;
            FOR i IN 1 .. cardinality(own) LOOP
                mine[i] := books[own[i]];
            END LOOP;
            blocker := obstacle(mine, member.amount);
            CONTINUE WHEN blocker.code <> 'BUDGET_EXCEEDED' OR mine[1].tenant_id <> member.tenant;
            answer_place := member.place; answer_tenant := member.tenant_id;
            IF blocker.code IS NOT NULL THEN
                answer_status := 409; answer_body := refusal(blocker.code, blocker.scope);
                RETURN NEXT;
                CONTINUE;
            END IF;
            change := moved(mine, member.amount, 0);
            CONTINUE WHEN change.drained;
            FOR i IN 1 .. cardinality(own) LOOP
                books[own[i]] := change.after[i];
            END LOOP;

            hold := NULL;
            hold.id := new_id(moment); hold.tenant_id := member.tenant; hold.idempotency_key := member.key;
            hold.unit := member.unit; hold.reserved := member.amount; hold.overage_policy := member.overage_policy;
            hold.scopes := member.scopes; hold.budgeted := change.scopes;
            hold.subject := member.subject; hold.action := member.action; hold.metadata := member.metadata;
            hold.created_at_ms := moment; hold.expires_at_ms := moment + member.ttl;
            hold.deadline_ms := moment + member.ttl + member.grace_ms; hold.max_extensions := member.max_extensions;
            holds := holds || hold;
            answer_status := 200;
            answer_body := allowance(mine, member.scopes) || jsonb_build_object(
                'reservation_id', hold.id, 'expires_at_ms', hold.expires_at_ms, 'remaining_ttl_ms', member.ttl,
                'scope_path', member.scopes[cardinality(member.scopes)], 'reserved', amount(member.unit, member.amount),
                'balances', balances_of(change.after));
            RETURN NEXT;
            answer.tenant_id := member.tenant; answer.key := member.key; answer.digest := member.request;
            answer.body := answer_body;
            answer.expires_at_ms := moment + greatest(member.ttl + member.grace_ms, 86400000);
            answers := answers || answer;
        END LOOP;
    END IF;

    UPDATE ledger AS l SET reserved = b.reserved, spent = b.spent FROM unnest(books) AS b
    WHERE l.id = b.id AND (l.reserved <> b.reserved OR l.spent <> b.spent);
    IF cardinality(ended) > 0 THEN
        UPDATE reservation AS r SET status = 'COMMITTED', committed = e.committed, finalized_at_ms = moment,
            metrics = e.metrics, committed_metadata = e.committed_metadata,
            finish_key = e.finish_key, finish_digest = e.finish_digest, finish_body = e.finish_body
        FROM unnest(ended) AS e WHERE r.id = e.id;
    END IF;
    IF cardinality(holds) > 0 THEN
        INSERT INTO reservation (id, tenant_id, idempotency_key, unit, reserved, overage_policy, scopes, budgeted,
            subject, action, metadata, created_at_ms, expires_at_ms, deadline_ms, max_extensions)
        SELECT h.id, h.tenant_id, h.idempotency_key, h.unit, h.reserved, h.overage_policy, h.scopes, h.budgeted,
            h.subject, h.action, h.metadata, h.created_at_ms, h.expires_at_ms, h.deadline_ms, h.max_extensions
        FROM unnest(holds) AS h;
        -- They come in order of tenant and key: two batches that wait for each other's keys cannot do so in a circle. A
        -- key that was taken meanwhile ends the batch; its members then ask one by one.
        INSERT INTO replay (tenant_id, operation, key, digest, body, expires_at_ms)
        SELECT a.tenant_id, 'reserve', a.key, a.digest, a.body, a.expires_at_ms FROM unnest(answers) AS a;
    END IF;
END
$$;
