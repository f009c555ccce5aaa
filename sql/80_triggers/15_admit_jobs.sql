-- drop: DROP FUNCTION IF EXISTS loracomp.admit_jobs()
-- drop: DROP TRIGGER IF EXISTS admit_jobs ON loracomp.job
-- Refuses a statement whose jobs do not fit into the queue, whole: set_queue_limits says how many may wait. Administrators'
-- jobs are not bound. What others insert at the same moment may go beyond a limit by as much.
CREATE FUNCTION loracomp.admit_jobs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    limits loracomp.queue_limit;
    submitter name;
    newest bigint;
BEGIN
    SELECT * INTO limits FROM loracomp.queue_limit;
    IF num_nonnulls(limits.in_all, limits.per_submitter) = 0 OR loracomp.caller_is_admin() THEN
        RETURN NULL;
    END IF;
    SELECT max(n.id) INTO newest FROM new_job AS n;
    IF newest IS NULL THEN
        RETURN NULL;
    END IF;
    -- The rows say whose they are: a function with its owner's rights inserts as that owner, whoever calls it.
    FOR submitter IN SELECT DISTINCT n.submitted_by FROM new_job AS n LOOP
        CONTINUE WHEN loracomp.has_room(submitter, limits.per_submitter, newest);
        PERFORM nextval('loracomp.refused_inserts');
        RAISE EXCEPTION 'at most % of % jobs may wait, and this would be more', limits.per_submitter,
            CASE submitter WHEN loracomp.caller() THEN 'your' ELSE format('%s''s', submitter) END
            USING ERRCODE = 'configuration_limit_exceeded', CONSTRAINT = 'your_share_of_the_queue_is_full',
                HINT = 'wait until some are answered, cancel those that are not needed (loracomp.cancel_job), or ask an '
                    'administrator for more (loracomp.set_queue_limits)';
    END LOOP;
    IF NOT loracomp.has_room('', limits.in_all, newest) THEN
        PERFORM nextval('loracomp.refused_inserts');
        RAISE EXCEPTION 'at most % jobs may wait, of all submitters together, and this would be more', limits.in_all
            USING ERRCODE = 'configuration_limit_exceeded', CONSTRAINT = 'the_queue_is_full',
                HINT = 'try again later (loracomp.queue_health shows how long the queue is), or ask an administrator for '
                    'more workers or for loracomp.set_queue_limits';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.admit_jobs IS 'Trigger: refuses jobs for which the queue has no room.';

CREATE TRIGGER admit_jobs AFTER INSERT ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.admit_jobs();
COMMENT ON TRIGGER admit_jobs ON loracomp.job IS 'Refuses what does not fit into the queue.';
