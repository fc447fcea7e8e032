-- extend: move a hold's expiry. It counts from the old expiry, so a repeated or late heartbeat cannot shorten a lease.
CREATE OR REPLACE FUNCTION extend_reservation(
    p_prefix text, p_digest bytea, p_reservation uuid, p_key text, p_request bytea, p_extend_by_ms bigint,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    caller record;
    hold reservation;
    expires bigint;
BEGIN
    SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
    IF NOT FOUND OR caller.reason IS NOT NULL THEN
        answer_status := 401; answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND')); RETURN;
    END IF;
    answer_tenant := caller.tenant_id;
    hold := (SELECT r FROM reservation r WHERE r.id = p_reservation FOR NO KEY UPDATE);
    IF hold.tenant_id = caller.id THEN
        answer_body := recall(caller.id, 'extend:' || hold.id, p_key, p_request);
    END IF;
    IF answer_body IS NOT NULL THEN
        answer_status := CASE WHEN answer_body ? 'error' THEN 409 ELSE 200 END;
        IF answer_status = 200 THEN
            answer_body := answer_body || jsonb_build_object('remaining_ttl_ms', CASE WHEN hold.status = 'ACTIVE'
                THEN greatest((answer_body ->> 'expires_at_ms')::bigint - now_ms(), 0) ELSE 0 END);
        END IF;
        RETURN;
    END IF;
    SELECT e.status, e.body INTO answer_status, answer_body FROM ended(hold, caller.id, NULL, p_key, p_request) AS e;
    IF answer_status IS NOT NULL THEN
        RETURN;
    END IF;
    IF now_ms() > hold.expires_at_ms THEN
        answer_status := 410; answer_body := refusal('RESERVATION_EXPIRED'); RETURN;
    END IF;
    IF hold.extension_count >= hold.max_extensions THEN
        answer_status := 409;
        answer_body := refusal('MAX_EXTENSIONS_EXCEEDED') || jsonb_build_object('limit', hold.max_extensions);
        RETURN;
    END IF;

    expires := hold.expires_at_ms + p_extend_by_ms;
    UPDATE reservation SET expires_at_ms = expires, deadline_ms = deadline_ms + p_extend_by_ms,
        extension_count = extension_count + 1
    WHERE id = hold.id;
    answer_status := 200;
    answer_body := jsonb_build_object('status', 'ACTIVE', 'expires_at_ms', expires,
        'remaining_ttl_ms', greatest(expires - now_ms(), 0),
        'balances', balances_of(read_ledgers(hold.tenant_id, hold.budgeted, hold.unit)));
    PERFORM remember(caller.id, 'extend:' || hold.id, p_key, p_request, answer_body, expires);
END
$$;
