-- The state of a locked reservation, as commit, release and extend judge it. Nulls: it is this caller's and ACTIVE.
CREATE OR REPLACE FUNCTION ended(
    hold reservation, p_tenant bigint, p_finish text, p_key text, p_request bytea, OUT status int, OUT body jsonb)
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF hold.id IS NULL THEN
        status := 404; body := refusal('NOT_FOUND') || '{"what": "reservation"}'; RETURN;
    END IF;
    IF hold.tenant_id <> p_tenant THEN
        status := 403; body := refusal('FORBIDDEN'); RETURN;
    END IF;
    IF hold.status = p_finish AND hold.finish_key = p_key THEN
        status := CASE WHEN hold.finish_digest = p_request THEN 200 ELSE 409 END;
        body := CASE status WHEN 200 THEN hold.finish_body ELSE refusal('IDEMPOTENCY_MISMATCH') END;
    ELSIF hold.status = 'EXPIRED' THEN
        status := 410; body := refusal('RESERVATION_EXPIRED');
    ELSIF hold.status <> 'ACTIVE' THEN
        status := 409; body := refusal('RESERVATION_FINALIZED');
    END IF;
END
$$;
