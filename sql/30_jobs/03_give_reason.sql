-- drop: DROP FUNCTION IF EXISTS loracomp.give_reason(text)
-- Sets what the audit's triggers write as reason in this transaction, and returns what was set before. Not a SET clause of
-- the functions that need it: to all but superusers Postgres refuses those for names that it does not know.
CREATE FUNCTION loracomp.give_reason(reason text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    before CONSTANT text := current_setting('loracomp.reason', true);
BEGIN
    PERFORM set_config('loracomp.reason', give_reason.reason, true);
    RETURN before;
END
$$;
COMMENT ON FUNCTION loracomp.give_reason IS
'Sets the reason that audit_event gets for changes of jobs in this transaction; returns the one before.';
