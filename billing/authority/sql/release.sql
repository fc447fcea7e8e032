-- release: give a hold back, once. An operator (no key) may do it for a suspended tenant, not for a closed one.
CREATE OR REPLACE FUNCTION release_reservation(
    p_prefix text, p_digest bytea, p_operator boolean, p_reservation uuid, p_key text, p_request bytea, p_reason text,
    p_context jsonb DEFAULT NULL,
    OUT answer_status int, OUT answer_tenant text, OUT answer_body jsonb)
LANGUAGE plpgsql AS $$
DECLARE
    caller record;
    hold reservation;
    result record;
    owner bigint;
BEGIN
    IF NOT p_operator THEN
        SELECT * INTO caller FROM caller_of(p_prefix, p_digest);
        IF NOT FOUND OR caller.reason IS NOT NULL THEN
            answer_status := 401; answer_body := refusal(coalesce(caller.reason, 'KEY_NOT_FOUND')); RETURN;
        END IF;
        answer_tenant := caller.tenant_id;
        owner := caller.id;
    END IF;
    hold := (SELECT r FROM reservation r WHERE r.id = p_reservation FOR NO KEY UPDATE);
    IF p_operator AND hold.id IS NOT NULL THEN
        PERFORM 1 FROM tenant t WHERE t.id = hold.tenant_id AND t.status = 'CLOSED';
        IF FOUND THEN
            answer_status := 409; answer_body := refusal('TENANT_CLOSED'); RETURN;
        END IF;
    END IF;
    result := ended(hold, coalesce(owner, hold.tenant_id), 'RELEASED', p_key, p_request);
    IF result.status IS NOT NULL THEN
        answer_status := result.status; answer_body := result.body; RETURN;
    END IF;
    IF now_ms() > hold.deadline_ms THEN
        answer_status := 410; answer_body := refusal('RESERVATION_EXPIRED'); RETURN;
    END IF;

    result := charge(
        lock_ledgers(hold.tenant_id, hold.budgeted, hold.unit), hold.reserved, 0, hold.overage_policy);
    answer_body := jsonb_build_object(
        'status', 'RELEASED', 'released', amount(hold.unit, hold.reserved), 'balances', result.balances);
    answer_status := 200;
    UPDATE reservation SET status = 'RELEASED', finalized_at_ms = now_ms(), release_reason = p_reason,
        finish_key = p_key, finish_digest = p_request, finish_body = answer_body
    WHERE id = hold.id;
    IF p_operator THEN
        PERFORM write_audit((SELECT t.tenant_id FROM tenant t WHERE t.id = hold.tenant_id), NULL, 'releaseReservation',
            200, 'reservation', hold.id::text, NULL,
            jsonb_strip_nulls(jsonb_build_object('reason', p_reason, 'actor_type', 'admin_on_behalf_of')), p_context);
    END IF;
END
$$;
