-- drop: DROP FUNCTION IF EXISTS loracomp.hint_job()
-- drop: DROP TRIGGER IF EXISTS hint_job ON loracomp.job
-- Tells idle workers that there are jobs; they look by themselves too. NOTIFY takes a lock of the whole cluster until
-- commit: ALTER DATABASE name SET loracomp.notify = 'off' turns it off where inserts are many. Any login of the server may fill
-- the queue of notifications, and NOTIFY would then refuse the jobs: above a half, workers must look by themselves.
CREATE FUNCTION loracomp.hint_job() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('loracomp.notify', true) IS DISTINCT FROM 'off' AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('loracomp_job', '');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.hint_job IS
'Trigger: notifies idle workers of new jobs, unless the setting loracomp.notify is off.';

CREATE TRIGGER hint_job AFTER INSERT ON loracomp.job FOR EACH STATEMENT EXECUTE FUNCTION loracomp.hint_job();
COMMENT ON TRIGGER hint_job ON loracomp.job IS 'Wakes idle workers.';
