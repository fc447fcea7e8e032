-- How calls of keys with rates are counted: for all processes together, on the database's clock.
--
-- Installed by the migration of this name and never edited: another migration replaces a function.
--
-- A minute's limit is a bucket: `requests` and `tokens` are what is in it, each as it was at its `_at`, and it drains by
-- the limit in a minute. Not a window of the clock's minutes: at the turn of one, two minutes' worth would pass at once.
-- How many calls are under way is not kept anywhere: it is how many rows of `billing_hold` bear the key, so that a
-- process that dies leaves nothing counted longer than its holds.

-- Counts one call where it fits, within the statement that writes its hold. What is locked here stays locked until that
-- statement has committed, so that the next call sees this one's hold. Each statement in here has a snapshot of its own,
-- which begins after the row was locked; with the outer statement's snapshot two calls would each miss the other.
--
-- `is_let_in`: it takes the place of a call of the same request that came to nothing. Its tokens are counted, and it is
-- neither refused nor one request more.
CREATE FUNCTION public.billing_count_call(
    the_account bigint, the_key bigint, most_requests bigint, most_tokens bigint, most_concurrent bigint, wanted bigint,
    is_let_in boolean
) RETURNS TABLE (
    "full" text, wait double precision, requests_left bigint, requests_reset double precision, tokens_left bigint,
    tokens_reset double precision
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    counted public.billing_keyrate%ROWTYPE;
    moment timestamptz;
    -- Seconds until it would fit; above zero where it does not.
    requests_wait double precision := 0;
    tokens_wait double precision := 0;
BEGIN
    LOOP
        SELECT * INTO counted FROM public.billing_keyrate AS rate
        WHERE rate.account_id = the_account AND rate.key_id = the_key FOR NO KEY UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO public.billing_keyrate (account_id, key_id, requests, requests_at, tokens, tokens_at)
        VALUES (the_account, the_key, 0, clock_timestamp(), 0, clock_timestamp())
        ON CONFLICT (account_id, key_id) DO NOTHING;
    END LOOP;
    moment := clock_timestamp();
    counted.requests := public.billing_drained(counted.requests, counted.requests_at, most_requests, moment);
    counted.tokens := public.billing_drained(counted.tokens, counted.tokens_at, most_tokens, moment);
    -- A millionth is what a double loses, and no request.
    IF NOT is_let_in AND counted.requests + 1 > most_requests + 1e-6 THEN
        requests_wait := (counted.requests + 1 - most_requests) * 60 / most_requests;
    END IF;
    IF NOT is_let_in AND counted.tokens + wanted > most_tokens + 1e-6 THEN
        tokens_wait := (counted.tokens + wanted - most_tokens) * 60 / most_tokens;
    END IF;
    IF requests_wait > 0 OR tokens_wait > 0 THEN
        "full" := CASE WHEN requests_wait >= tokens_wait THEN 'requests' ELSE 'tokens' END;
        wait := greatest(requests_wait, tokens_wait);
    ELSIF NOT is_let_in AND most_concurrent IS NOT NULL AND most_concurrent <= (
        SELECT count(*) FROM public.billing_hold AS hold
        WHERE hold.account_id = the_account AND hold.rated_key = the_key
    ) THEN
        "full" := 'concurrent';
    ELSE
        counted.requests := coalesce(counted.requests + CASE WHEN is_let_in THEN 0 ELSE 1 END, 0);
        counted.tokens := coalesce(counted.tokens + wanted, 0);
        UPDATE public.billing_keyrate AS rate
        SET requests = counted.requests, requests_at = moment, tokens = counted.tokens, tokens_at = moment
        WHERE rate.account_id = the_account AND rate.key_id = the_key;
    END IF;
    requests_left := greatest(0, floor(most_requests - counted.requests + 1e-6));
    requests_reset := counted.requests * 60 / most_requests;
    tokens_left := greatest(0, floor(most_tokens - counted.tokens + 1e-6));
    tokens_reset := counted.tokens * 60 / most_tokens;
    RETURN NEXT;
END
$$;

-- What is left in a bucket; null where there is no limit.
CREATE FUNCTION public.billing_drained(
    held double precision, since timestamptz, most bigint, moment timestamptz
) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN most IS NULL THEN NULL
        ELSE greatest(0, held - greatest(0, extract(epoch FROM moment - since)) * most / 60) END
$$;

-- Brings what was counted for a call at first to what it used. Always true: it stands in the WHERE of the statement that
-- deletes the hold, so that the key's row is locked before the hold's is, as a call that begins locks them. The other
-- way round the two could wait for each other.
CREATE FUNCTION public.billing_correct_tokens(
    the_account bigint, the_key bigint, most_tokens bigint, more bigint
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment timestamptz;
BEGIN
    PERFORM FROM public.billing_keyrate AS rate
    WHERE rate.account_id = the_account AND rate.key_id = the_key FOR NO KEY UPDATE;
    moment := clock_timestamp();
    UPDATE public.billing_keyrate AS rate
    SET tokens = greatest(0, public.billing_drained(rate.tokens, rate.tokens_at, most_tokens, moment) + more),
        tokens_at = moment
    WHERE rate.account_id = the_account AND rate.key_id = the_key;
    RETURN true;
END
$$;
