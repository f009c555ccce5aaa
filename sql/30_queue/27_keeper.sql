-- Which worker keeps house, which means that it calls the keeper's steps (25_housekeeping.sql), and what the steps did.
--   keep_house                  elects the worker that calls the steps
--   leave_house                 lets another worker be elected at once
--   note_step                   what a step did last, for administrators

-- A worker is elected for a few seconds, and stays elected while it calls this function again in time. The election is a lease in a row and
-- not an advisory lock, because any login could hold such a lock for ever, and because a worker that hangs keeps its session but loses the
-- lease. Two keepers at once do no harm, because each step skips rows that another session has locked.
-- Workers ask several times in the length of a lease. If nobody has kept house for half a lease, no worker has reached the database: the server was
-- down, or the network. The workers may still answer their jobs, so they get time (grace) to renew the leases that ended. If a lease ends later
-- than the longest lease allows, the server's clock has gone back since the lease began, so the lease counts as over. The grace of an outage ends
-- in this case too: the clock had jumped forward before, which looked like an outage, and now the grace would last until the clock shows that late
-- time again.
CREATE FUNCTION loracomp.keep_house(worker text, lease interval, grace interval DEFAULT '0') RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    longest CONSTANT interval := '60 seconds';
BEGIN
    PERFORM loracomp.check_range('lease', extract(EPOCH FROM keep_house.lease), 0, extract(EPOCH FROM longest));
    PERFORM loracomp.check_range('grace', extract(EPOCH FROM keep_house.grace), 0, 3600); -- the longest LORACOMP_LEASE_S
    -- Read first: INSERT locks the row even where it changes nothing, and every worker asks every few seconds.
    IF EXISTS (
        SELECT FROM loracomp.keeper AS k
        WHERE k.worker <> keep_house.worker AND k.keeps_until > clock_timestamp() AND k.keeps_until <= clock_timestamp() + longest
    ) THEN
        RETURN FALSE;
    END IF;
    INSERT INTO loracomp.keeper AS k (worker, keeps_until) VALUES (keep_house.worker, clock_timestamp() + keep_house.lease)
    ON CONFLICT ON CONSTRAINT keeper_pkey DO UPDATE SET
        worker = excluded.worker,
        keeps_until = excluded.keeps_until,
        (unattended_since, grace_until) = (
            SELECT
                CASE WHEN o.outage THEN k.keeps_until - keep_house.lease ELSE k.unattended_since END,
                CASE
                    WHEN o.outage THEN clock_timestamp() + keep_house.grace
                    WHEN k.keeps_until <= clock_timestamp() + longest THEN k.grace_until -- else the clock has gone back
                END
            FROM (SELECT k.keeps_until < clock_timestamp() - keep_house.lease / 2 AS outage) AS o
        )
    WHERE k.worker = excluded.worker OR k.keeps_until <= clock_timestamp() OR k.keeps_until > clock_timestamp() + longest;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION loracomp.keep_house IS
'Returns whether the worker keeps house for the length of a lease: it was elected before, or no other worker is elected now. '
'If nobody kept house for a while, workers can renew leases that ended meanwhile for the length of grace, before rescue_jobs takes them.';

CREATE FUNCTION loracomp.leave_house(worker text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
BEGIN ATOMIC
    UPDATE loracomp.keeper AS k SET keeps_until = clock_timestamp() WHERE k.worker = leave_house.worker;
END;
COMMENT ON FUNCTION loracomp.leave_house IS 'Ends a worker''s turn as keeper, because it stops.';

-- The error of a step that fails stays until the step succeeds.
CREATE FUNCTION loracomp.note_step(
    step text, worker text, handled integer, took_s double precision, error text
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
BEGIN ATOMIC
    INSERT INTO loracomp.keeper_step AS s (step, worker, ran_at, took_s, handled, error)
    VALUES (
        note_step.step, note_step.worker, clock_timestamp(), note_step.took_s, note_step.handled,
        left(note_step.error, 1000)
    )
    ON CONFLICT ON CONSTRAINT keeper_step_pkey DO UPDATE SET
        worker = excluded.worker, ran_at = excluded.ran_at, took_s = excluded.took_s, handled = excluded.handled,
        error = excluded.error;
END;
COMMENT ON FUNCTION loracomp.note_step IS 'Notes in keeper_step what a step of the keeper did last, or why it failed.';
