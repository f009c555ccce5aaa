-- drop: DROP FUNCTION IF EXISTS loracomp.set_queue_limits(bigint, bigint)
-- Sets both limits; what waits already stays. null: no limit.
CREATE FUNCTION loracomp.set_queue_limits(in_all bigint, per_submitter bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UPDATE loracomp.queue_limit AS l
    SET in_all = set_queue_limits.in_all, per_submitter = set_queue_limits.per_submitter;
    PERFORM setval('loracomp.queue_full_until', 0);
END
$$;
COMMENT ON FUNCTION loracomp.set_queue_limits IS
'Sets how many jobs may wait in all, evaluations apart, and of each submitter; null: any number.';
