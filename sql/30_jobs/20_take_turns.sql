-- drop: DROP FUNCTION IF EXISTS loracomp.take_turns(text, name[])
-- Notes that these submitters were served now, in this order: a microsecond apart, so that no two are equally long ago.
-- Never waits: what another claim holds, that claim notes.
CREATE FUNCTION loracomp.take_turns(base_model text, submitters name[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    WITH free AS MATERIALIZED (
        SELECT t.submitted_by FROM loracomp.turn AS t
        WHERE t.base_model = take_turns.base_model AND t.submitted_by = ANY (take_turns.submitters)
        FOR UPDATE SKIP LOCKED
    )
    UPDATE loracomp.turn AS t
    SET served_at = now() + interval '1 microsecond' * array_position(take_turns.submitters, t.submitted_by)
    FROM free AS f
    WHERE t.base_model = take_turns.base_model AND t.submitted_by = f.submitted_by;
    -- Two who insert the same newcomer would wait for each other: one at a time, by a lock that only owners can hold.
    PERFORM FROM loracomp.base_model AS b
    WHERE b.name = take_turns.base_model AND EXISTS (
        SELECT FROM unnest(take_turns.submitters) AS s (submitted_by)
        WHERE NOT EXISTS (
            SELECT FROM loracomp.turn AS t
            WHERE t.base_model = take_turns.base_model AND t.submitted_by = s.submitted_by
        )
    )
    FOR NO KEY UPDATE SKIP LOCKED;
    IF found THEN
        INSERT INTO loracomp.turn (base_model, submitted_by, served_at)
        SELECT take_turns.base_model, s.submitted_by, now() + interval '1 microsecond' * s.place
        FROM unnest(take_turns.submitters) WITH ORDINALITY AS s (submitted_by, place)
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.take_turns IS 'Notes when submitters were last served. For claim_jobs.';
