-- drop: DROP FUNCTION IF EXISTS loracomp.fill_job()
-- drop: DROP TRIGGER IF EXISTS fill_job ON loracomp.job
-- Fills what an INSERT may leave open, keeps due in step, and refuses tasks that don't exist. It reads tables that not
-- every caller may.
CREATE FUNCTION loracomp.fill_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    unknown text;
BEGIN
    IF tg_op = 'INSERT' AND NOT loracomp.caller_is_admin() THEN
        -- A time in the past is no way to the front of the queue.
        new.run_at := greatest(new.run_at, new.created_at);
    END IF;
    -- Evaluations stand behind everybody for 1000 minutes: the range of priorities.
    new.scheduled := new.run_at > now();
    new.due := new.run_at
        - make_interval(mins => new.priority - CASE WHEN new.evaluation IS NULL THEN 0 ELSE 1000 END);
    IF new.choices IS NULL AND new.max_new_tokens IS NULL AND new.kind = 'predict' THEN
        new.max_new_tokens := 64;
    END IF;
    IF new.base_model IS NULL THEN
        SELECT b.name INTO new.base_model FROM loracomp.base_model AS b WHERE b.is_default;
        IF new.base_model IS NULL THEN
            RAISE EXCEPTION 'base_model is not given and no base model is the default'
                USING ERRCODE = 'not_null_violation', CONSTRAINT = 'base_model_must_be_given_where_none_is_the_default',
                    HINT = 'name one, or let an administrator make one the default';
        END IF;
    END IF;
    -- Only when it is given: a job must go on when a task that it excludes goes away.
    IF new.exclude_tasks <> '{}' AND (tg_op = 'INSERT' OR new.exclude_tasks IS DISTINCT FROM old.exclude_tasks) THEN
        -- array_remove refuses arrays of more dimensions in words of its own; a constraint has better ones.
        unknown := loracomp.unknown_tasks(
            ARRAY(SELECT u.name FROM unnest(new.exclude_tasks) AS u (name) WHERE u.name IS NOT NULL)
        );
        IF unknown IS NOT NULL THEN
            RAISE EXCEPTION 'exclude_tasks names tasks that do not exist: %', unknown
                USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'exclude_tasks_must_name_tasks',
                    HINT = 'leave them out: what does not exist is not used';
        END IF;
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.fill_job IS
'Trigger: fills due, base_model and max_new_tokens of a job, and refuses unknown names in exclude_tasks.';

CREATE TRIGGER fill_job
BEFORE INSERT OR UPDATE OF run_at, priority, choices, max_new_tokens, kind, base_model, exclude_tasks ON loracomp.job
FOR EACH ROW EXECUTE FUNCTION loracomp.fill_job();
COMMENT ON TRIGGER fill_job ON loracomp.job IS 'Fills due, base_model and max_new_tokens.';
